"""Parts that commands of `aifx ckpt` share: an argument, and a checkpoint as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import date, figure
from aifx.commands.console.output import Output
from aifx.core.json_files import readable_bytes
from aifx.core.project import find_project

if TYPE_CHECKING:
    from aifx.verbs.checkpoints import CheckpointInfo, ShownCheckpoint, VerifiedCheckpoint

StepArgument = Annotated[
    str | None, typer.Argument(metavar="[STEP|best|last]", help="Checkpoint to read. By default the last.")
]


def folder_of(run: str) -> Path:
    """The folder with the checkpoints of a run of the project."""
    return find_project().run(run).checkpoints


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


def print_checkpoint(
    out: Output, checkpoint: ShownCheckpoint | VerifiedCheckpoint, rows: list[tuple[str, str | None]]
) -> None:
    """Print a checkpoint as a table."""
    folder = folder_of(checkpoint.run) / str(checkpoint.step)
    out.table(["checkpoint", str(folder)], [row for row in rows if row[1] is not None])
