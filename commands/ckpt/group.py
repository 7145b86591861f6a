"""`aifx ckpt`: list, show and verify checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.format import date, figure
from aifx.commands.console.options import JsonOption, RunOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode
from aifx.core.json_files import readable_bytes
from aifx.core.project import find_project
from aifx.core.steps import parse_step

if TYPE_CHECKING:
    from aifx.checkpoint.listing import CheckpointInfo

app = typer.Typer(
    help="""List, show and verify checkpoints.

    Examples:
        aifx ckpt ls                   list the checkpoints of the newest run
        aifx ckpt show best            show the best one and its digest
        aifx ckpt verify               name damaged files and arrays
    """
)


@app.command()
def ls(run: RunOption = None, json: JsonOption = False) -> None:
    """List a run's checkpoints by their manifests, without reading arrays.

    Examples:
        aifx ckpt ls
        aifx ckpt ls --run main --json
    """
    with terminal(json) as out:
        from aifx.checkpoint.inspection import checkpoint_list
        from aifx.commands.runs.page import print_checkpoints

        directory = find_project().existing_run(run)
        found = checkpoint_list(directory)
        out.document(found)
        if found.checkpoints:
            print_checkpoints(out, found.checkpoints)
        else:
            out.log(f"run {found.run} has no checkpoint")
        for name in found.set_aside:
            out.print(f"set aside as damaged: {directory.checkpoints / name}")


StepArgument = Annotated[
    str | None, typer.Argument(metavar="[STEP|best|last]", help="Checkpoint to read. By default the last.")
]


@app.command()
def show(
    step: StepArgument = None,
    run: RunOption = None,
    arrays: Annotated[bool, typer.Option("--arrays", help="List every array with its shape and digest.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a checkpoint by its manifest, with the digest of its state, without reading arrays.

    Examples:
        aifx ckpt show
        aifx ckpt show best --run main
        aifx ckpt show 400 --arrays

    Exits 1 if the manifest is damaged or files are missing.
    """
    with terminal(json) as out:
        from aifx.checkpoint.inspection import show_checkpoint

        directory = find_project().existing_run(run)
        checkpoint = show_checkpoint(directory, parse_step(step), with_arrays=arrays)
        out.document(checkpoint)
        if not json:
            rows = [*_summary(checkpoint, checkpoint.run), ("state digest", checkpoint.state_digest)]
            if checkpoint.damaged:
                rows.append(("damaged", checkpoint.damaged))
            _print(out, directory.checkpoints / str(checkpoint.step), rows)
            if checkpoint.arrays:
                out.print("")
                found = [(a.name, f"{a.dtype}[{', '.join(map(str, a.shape))}]", a.digest) for a in checkpoint.arrays]
                out.table(["array", "", "digest"], found)
        if checkpoint.damaged:
            raise SystemExit(ExitCode.VERDICT)


@app.command()
def verify(step: StepArgument = None, run: RunOption = None, json: JsonOption = False) -> None:
    """Read every byte of a checkpoint, compare it with the saved digests, and name damaged files and arrays.

    Examples:
        aifx ckpt verify
        aifx ckpt verify best --run main
        aifx ckpt verify 400 --json

    Exits 1 if the checkpoint is damaged, or holds adapters whose base run is missing or has changed.
    """
    with terminal(json) as out:
        from aifx.checkpoint.inspection import verify_checkpoint
        from aifx.checkpoint.manifest import read_manifest
        from aifx.runs.base_run import base_error

        directory = find_project().existing_run(run)
        checkpoint = verify_checkpoint(directory, parse_step(step))
        if checkpoint.is_whole:
            bound = read_manifest(directory.checkpoints / str(checkpoint.step)).run
            if (error := base_error(directory, bound)) is not None:
                checkpoint = replace(checkpoint, unusable=str(error))
        out.document(checkpoint)
        if not json:
            verdict = "whole: every byte equals what was saved" if checkpoint.is_whole else "damaged"
            rows = [*_summary(checkpoint, checkpoint.run), ("state digest", checkpoint.state_digest)]
            _print(out, directory.checkpoints / str(checkpoint.step), [*rows, ("verdict", verdict)])
            for line in checkpoint.damaged_files:
                out.print(f"damaged file: {line}")
            for name in checkpoint.damaged_arrays:
                out.print(f"damaged array: {name}")
            if checkpoint.unusable:
                out.print(f"unusable: {checkpoint.unusable}")
        if checkpoint.unusable or not checkpoint.is_whole:
            raise SystemExit(ExitCode.VERDICT)


def _summary(info: CheckpointInfo, run: str) -> list[tuple[str, str | None]]:
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


def _print(out: Output, folder: Path, rows: list[tuple[str, str | None]]) -> None:
    out.table(["checkpoint", str(folder)], [row for row in rows if row[1] is not None])
