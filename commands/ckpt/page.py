"""What the commands of `aifx ckpt` have in common: an argument, and a checkpoint as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import date, figure
from aifx.commands.console.output import Output
from aifx.core.json_files import readable_bytes
from aifx.core.project import Project, RunDirectory
from aifx.core.steps import parse_step

if TYPE_CHECKING:
    from aifx.checkpoint.listing import CheckpointInfo

StepArgument = Annotated[
    str | None, typer.Argument(metavar="[STEP|best|last]", help="Checkpoint to read. By default the last.")
]


def find_checkpoint(text: str, project: Project, run: str | None) -> tuple[RunDirectory, int]:
    """The checkpoint that `STEP` or `RUN:STEP` names. Raises UsageError, CheckpointError."""
    from aifx.checkpoint.inspection import choose_checkpoint

    name, colon, step = text.rpartition(":")
    directory = project.existing_run(name if colon else run)
    return directory, choose_checkpoint(directory, parse_step(step), "show").step


def summary(info: CheckpointInfo, run: str) -> list[tuple[str, str | None]]:
    """Rows on a checkpoint: a label and a text; None for what is not known."""
    score = info.score
    return [
        ("run", run),
        ("step", f"{info.step}{' (best)' if info.is_best else ''}"),
        ("saved", date(info.saved_at)),
        ("validation loss", figure(info.validation_loss)),
        (f"validation {score.metric}", figure(score.value)) if score and score.metric != "loss" else ("", None),
        ("parameters", f"{info.num_parameters:,}" if info.num_arrays else None),
        ("size", f"{readable_bytes(info.size_bytes)} in {info.num_arrays} arrays" if info.num_arrays else None),
    ]


def print_checkpoint(out: Output, folder: Path, rows: list[tuple[str, str | None]]) -> None:
    """Print a checkpoint as a table."""
    out.table(["checkpoint", str(folder)], [row for row in rows if row[1] is not None])
