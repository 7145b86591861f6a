"""`aifx ckpt`: list and show checkpoints."""

from __future__ import annotations

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
    from aifx.checkpoint.inspection import VerifiedCheckpoint

app = typer.Typer(
    help="""List and verify checkpoints.

    Examples:
        aifx ckpt ls                   list the checkpoints of the newest run
        aifx ckpt show best            verify the best checkpoint and print its digest
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


@app.command()
def show(
    step: Annotated[
        str | None, typer.Argument(metavar="[STEP|best|last]", help="Checkpoint to show. By default the last.")
    ] = None,
    run: RunOption = None,
    arrays: Annotated[bool, typer.Option("--arrays", help="List every array with its shape and digest.")] = False,
    json: JsonOption = False,
) -> None:
    """Read a checkpoint, compare every array with its saved digest, and print the state's digest.

    Examples:
        aifx ckpt show
        aifx ckpt show best --run main
        aifx ckpt show 400 --json

    Exits 1 if the checkpoint is damaged.
    """
    with terminal(json) as out:
        from aifx.checkpoint.inspection import verify_checkpoint

        directory = find_project().existing_run(run)
        checkpoint = verify_checkpoint(directory, parse_step(step), with_arrays=arrays)
        out.document(checkpoint)
        if not json:
            _print(out, directory.checkpoints / str(checkpoint.step), checkpoint)
        if checkpoint.damage:
            raise SystemExit(ExitCode.VERDICT)


def _print(out: Output, folder: Path, info: VerifiedCheckpoint) -> None:
    score = info.score
    rows = [
        ("run", info.run),
        ("step", f"{info.step}{' (best)' if info.is_best else ''}"),
        ("saved", date(info.saved_at)),
        ("validation loss", figure(info.validation_loss)),
        (f"validation {score.metric}", figure(score.value)) if score and score.metric != "loss" else ("", None),
        ("parameters", f"{info.num_parameters:,}" if info.num_arrays else None),
        ("size", f"{readable_bytes(info.size_bytes)} in {info.num_arrays} arrays" if info.num_arrays else None),
        ("state digest", info.state_digest),
        ("verdict", "damaged" if info.damage else "whole: every array equals what was saved"),
    ]
    out.table(["checkpoint", str(folder)], [row for row in rows if row[1] is not None])
    for name in info.damage:
        out.print(f"damaged: {name}")
    if info.arrays:
        out.print("")
        arrays = [(a.name, f"{a.dtype}[{', '.join(map(str, a.shape))}]", a.sha256[:16]) for a in info.arrays]
        out.table(["array", "", "sha256"], arrays)
