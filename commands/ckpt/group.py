"""`aifx ckpt`: list, show, verify, compare, delete and average checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.ckpt.comparing import diff
from aifx.commands.ckpt.keeping import average, cp, prune
from aifx.commands.ckpt.page import StepArgument, print_checkpoint, summary
from aifx.commands.ckpt.verifying import verify
from aifx.commands.console.options import JsonOption, RunOption
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode
from aifx.core.project import find_project
from aifx.core.steps import parse_step

app = typer.Typer(
    help="""List, show, verify, compare, delete and average checkpoints.

    Examples:
        aifx ckpt ls                   list the checkpoints of the newest run
        aifx ckpt show best            show the best one and its digest
        aifx ckpt verify               name damaged files and arrays
        aifx ckpt verify --replay 10   train 10 steps again, and compare
        aifx ckpt diff best last       compare two checkpoints array by array
        aifx ckpt prune --keep-last 1  delete the others
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
            rows = [*summary(checkpoint, checkpoint.run), ("state digest", checkpoint.state_digest)]
            if checkpoint.damaged:
                rows.append(("damaged", checkpoint.damaged))
            print_checkpoint(out, directory.checkpoints / str(checkpoint.step), rows)
            if checkpoint.arrays:
                out.print("")
                found = [(a.name, f"{a.dtype}[{', '.join(map(str, a.shape))}]", a.digest) for a in checkpoint.arrays]
                out.table(["array", "", "digest"], found)
        if checkpoint.damaged:
            raise SystemExit(ExitCode.VERDICT)


app.command()(verify)
app.command()(diff)
app.command()(prune)
app.command()(average)
app.command()(cp)
