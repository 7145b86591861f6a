"""`aifx ckpt`: list, show, verify, compare, delete and average checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.ckpt.comparing import diff
from aifx.commands.ckpt.keeping import average, cp, prune
from aifx.commands.ckpt.page import folder_of, print_checkpoint, summary
from aifx.commands.ckpt.verifying import verify
from aifx.commands.console.options import JsonOption, RunOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.json_files import readable_bytes

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
        from aifx.commands.runs.page import print_checkpoints
        from aifx.verbs.checkpoints import ckpt_ls

        found = ckpt_ls(run)
        out.result(found)
        if found.checkpoints:
            print_checkpoints(out, found.checkpoints)
        else:
            out.log(f"run {found.run} has no checkpoint")
        for name in found.set_aside:
            out.print(f"set aside as damaged: {folder_of(found.run) / name}")


ShownArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[STEP|best|last|FOLDER]",
        help="Checkpoint to read. By default the last. FOLDER, with a /: one that Orbax wrote.",
    ),
]


@app.command()
def show(
    step: ShownArgument = None,
    run: RunOption = None,
    arrays: Annotated[bool, typer.Option("--arrays", help="List every array with its shape and digest.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a checkpoint by its manifest, with the digest of its state, without reading arrays.

    Examples:
        aifx ckpt show
        aifx ckpt show best --run main
        aifx ckpt show 400 --arrays
        aifx ckpt show maxtext/checkpoints/1000

    Of a checkpoint that Orbax wrote, aifx lists each array with its type, shape and size. It needs no project for that.
    Exits 1 if the manifest is damaged or files are missing.
    """
    with terminal(json) as out:
        if step is not None and "/" in step:
            _show_orbax(out, step)
            return
        from aifx.verbs.checkpoints import ckpt_show

        checkpoint = ckpt_show(step, run=run, arrays=arrays)
        out.result(checkpoint)
        if not json:
            rows = [*summary(checkpoint, checkpoint.run), ("state digest", checkpoint.state_digest)]
            if checkpoint.damaged:
                rows.append(("damaged", checkpoint.damaged))
            print_checkpoint(out, checkpoint, rows)
            if checkpoint.arrays:
                out.print("")
                found = [(a.name, f"{a.dtype}[{', '.join(map(str, a.shape))}]", a.digest) for a in checkpoint.arrays]
                out.table(["array", "", "digest"], found)


def _show_orbax(out: Output, folder: str) -> None:
    from aifx.verbs.checkpoints import ckpt_show_orbax

    found = ckpt_show_orbax(folder)
    out.result(found)
    out.print(f"{found.path}: a checkpoint of Orbax, {readable_bytes(found.size_bytes)}")
    for item in found.items:
        size = readable_bytes(sum(array.size_bytes or 0 for array in item.arrays))
        out.print("")
        out.print(f"{item.name}: {len(item.arrays)} arrays, {size}")
        rows = [
            (
                array.name,
                f"{array.dtype}[{', '.join(map(str, array.shape))}]",
                None if array.size_bytes is None else readable_bytes(array.size_bytes),
            )
            for array in item.arrays
        ]
        out.table(["array", "", "size"], rows, right=["size"])


app.command()(verify)
app.command()(diff)
app.command()(prune)
app.command()(average)
app.command()(cp)
