"""`aifx ckpt`: list, show, verify, compare, delete and average checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.format import date, figure
from aifx.commands.console.options import DryRunOption, JsonOption, RunOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.project import find_project
from aifx.verbs.completion import complete_checkpoint

if TYPE_CHECKING:
    from aifx.verbs.checkpoints import (
        ArrayDifference,
        CheckpointDifference,
        CheckpointInfo,
        PrunedCheckpoints,
        ShownCheckpoint,
        VerifiedCheckpoint,
    )


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


SHOWN = 10
COLUMNS = ["", "norm A", "norm B", "norm of B-A", "largest change", "non-finite"]


def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="First checkpoint: STEP or RUN:STEP.", autocompletion=complete_checkpoint)
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Second checkpoint.", autocompletion=complete_checkpoint)],
    run: RunOption = None,
    arrays: Annotated[
        bool, typer.Option("--arrays", help=f"List every array, not only the {SHOWN} that differ most.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare two checkpoints array by array: norms, the largest change, and elements that are not finite.

    Examples:
        aifx ckpt diff 400 800
        aifx ckpt diff best last --run main --arrays
        aifx ckpt diff main:400 fork:400 --json

    A step can also be best or last. Every array is compared with its digest while it is read.
    """
    with terminal(json) as out:
        from aifx.verbs.checkpoints import ckpt_diff

        found = ckpt_diff(first, second, run=run)
        out.result(found)
        if not json:
            _print_difference(out, found, all_arrays=arrays)


def _print_difference(out: Output, found: CheckpointDifference, *, all_arrays: bool) -> None:
    a, b = found.checkpoints
    out.print(f"A: {a}    B: {b}    {'equal, bit for bit' if found.equal else 'different'}")
    out.table(
        COLUMNS,
        [
            (
                f"{part.name} ({part.num_different} of {part.num_arrays} arrays differ)",
                *map(_number, (*part.norms, part.difference_norm, part.largest_change)),
                _counts(part.non_finite),
            )
            for part in found.parts
        ],
        right=COLUMNS[1:],
    )
    different = sorted((array for array in found.arrays if not array.equal), key=lambda array: -array.relative)
    rows = found.arrays if all_arrays else different[:SHOWN]
    if rows:
        out.print("")
        out.table(
            ["array", *COLUMNS[1:], "relative"], [_row(array) for array in rows], right=[*COLUMNS[1:], "relative"]
        )
    if (hidden := len(different) - SHOWN) > 0 and not all_arrays:
        out.print(f"and {hidden} more arrays with a smaller relative change (--arrays lists all)")


def _row(array: ArrayDifference) -> tuple[object, ...]:
    if array.shapes[0] != array.shapes[1]:
        only = "only in A" if array.shapes[1] is None else "only in B" if array.shapes[0] is None else "another shape"
        return array.name, *map(_number, array.norms), only, None, _counts(array.non_finite), None
    numbers = (*array.norms, array.difference_norm, array.largest_change)
    return array.name, *map(_number, numbers), _counts(array.non_finite), _number(array.relative)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _counts(pair: tuple[int | None, int | None]) -> str:
    return " ".join("-" if count is None else str(count) for count in pair)


def prune(
    run: RunOption = None,
    keep_last: Annotated[
        int | None,
        typer.Option(
            "--keep-last", metavar="N", min=1, help="Newest checkpoints to keep. By default checkpoint.keep_last."
        ),
    ] = None,
    keep_best: Annotated[
        int | None,
        typer.Option("--keep-best", metavar="K", min=0, help="Best ones to keep too. By default checkpoint.keep_best."),
    ] = None,
    keep_every: Annotated[
        int,
        typer.Option(
            "--keep-every", metavar="M", min=0, help="Also keep steps that are multiples of M.", show_default=False
        ),
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Delete checkpoints of a run that no option keeps.

    Examples:
        aifx ckpt prune --keep-last 1 --dry-run
        aifx ckpt prune --run main --keep-every 1000 --yes

    aifx also keeps damaged checkpoints, and those that another run of the project needs. On a terminal, it asks first.
    A script must use --yes. The run must not be training.
    """
    with terminal(json) as out:
        from aifx.verbs.checkpoints import ckpt_prune

        def confirm(plan: PrunedCheckpoints) -> None:
            steps, size = _removed(plan)
            what = f"the checkpoints of steps {steps} of run {plan.run}"
            confirm_deletion(out, what, size, f"aifx ckpt prune --run {plan.run} --yes")

        plan = ckpt_prune(
            run,
            keep_last=keep_last,
            keep_best=keep_best,
            keep_every=keep_every,
            dry_run=dry_run,
            confirm=None if yes else confirm,
        )
        out.result(plan)
        steps, size = _removed(plan)
        for kept in plan.kept:
            out.print(f"kept {kept.step}: {', '.join(kept.reasons)}")
        verb = "would delete" if dry_run else "deleted"
        out.print(f"{verb} {steps}: {size}" if plan.removed else "nothing to delete")


def _removed(plan: PrunedCheckpoints) -> tuple[str, str]:
    """The steps of the checkpoints that are deleted, and their size."""
    steps = ", ".join(str(checkpoint.step) for checkpoint in plan.removed)
    return steps, readable_bytes(sum(checkpoint.size_bytes for checkpoint in plan.removed))


def average(
    steps: Annotated[list[str], typer.Argument(metavar="STEP", help="Checkpoints to average: two or more.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the new run.")],
    run: RunOption = None,
    json: JsonOption = False,
) -> None:
    """Make a run of the mean weights of several checkpoints of a run.

    Examples:
        aifx ckpt average 800 900 1000 --name averaged
        aifx eval --run averaged

    The new run has the configuration and the assets of the run, and a checkpoint of the newest of these steps. `aifx
    eval`, `predict`, `generate`, `serve` and `export` use it like any other; it cannot be resumed. If the run is what
    the same command made before, aifx says so and exits 0.
    """
    with terminal(json) as out:
        from aifx.verbs.checkpoints import ckpt_average

        made = ckpt_average(*steps, name=name, run=run)
        out.result(made)
        if not json:
            listed = ", ".join(map(str, made.steps))
            there = "" if made.is_new else ", which was there already"
            out.print(f"run {made.run}: the mean of steps {listed} of run {made.averaged_run}{there}")
            out.print(
                f"{made.parameters:,} parameters, {readable_bytes(made.size_bytes)}; next: aifx eval --run {made.run}"
            )


def cp(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="STEP, RUN:STEP, or a checkpoint's folder or URL.", autocompletion=complete_checkpoint
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="DEST", help="Folder or URL to copy into, or RUN: for a run.")],
    run: RunOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a checkpoint to a folder or a URL, or back into its run, and verify each file where it arrives.

    Examples:
        aifx ckpt cp best /backup/main
        aifx ckpt cp main:400 s3://bucket/main
        aifx ckpt cp s3://bucket/main/400 main:

    The copy is DEST/STEP. If the command is interrupted, run it again: files that arrived are not copied again. For s3://
    install s3fs, for gs:// gcsfs.
    """
    with terminal(json) as out:
        from aifx.verbs.checkpoints import ckpt_cp

        copied = ckpt_cp(source, target, run=run)
        out.result(copied)
        new = readable_bytes(copied.copied_bytes)
        out.print(
            f"{copied.target}: {copied.files} files, {readable_bytes(copied.size_bytes)}, verified; {new} copied now"
        )


def verify(
    step: StepArgument = None,
    run: RunOption = None,
    every: Annotated[bool, typer.Option("--all", help="Verify all checkpoints of the run.")] = False,
    replay: Annotated[
        int,
        typer.Option(
            "--replay",
            metavar="N",
            min=0,
            help="Also train N steps again and compare. Without STEP, from a checkpoint with another N steps later.",
            show_default=False,
        ),
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Read every byte of a checkpoint, compare it with the saved digests, and name damaged files and arrays.

    Examples:
        aifx ckpt verify
        aifx ckpt verify best --run main
        aifx ckpt verify --all --json
        aifx ckpt verify 400 --replay 100

    Exits 1 if the checkpoint is damaged, if a file of the run or the data that it names has changed, or if --replay
    gives another state. --replay compares with the run's checkpoint N steps later; without one it trains twice.
    """
    with terminal(json) as out:
        from aifx.verbs.checkpoints import ckpt_verify, ckpt_verify_all

        if every:
            if step is not None or replay:
                other = "a step" if step is not None else "--replay"
                raise UsageError(f"--all cannot be used with {other}", "", "aifx ckpt verify --all")
            verified = ckpt_verify_all(run)
            out.result(verified)
            found = verified.checkpoints
        else:
            found = [ckpt_verify(step, run=run, replay=replay)]
            out.result(found[0])
        for number, checkpoint in enumerate(found):
            if number:
                out.print("")
            _print_verified(out, checkpoint)


def _print_verified(out: Output, checkpoint: VerifiedCheckpoint) -> None:
    if out.json:
        return
    rows = [*summary(checkpoint, checkpoint.run), ("state digest", checkpoint.state_digest)]
    verdict = "whole: every byte equals what was saved" if checkpoint.is_whole else "damaged"
    if (replay := checkpoint.replay) is not None:
        what = f"the {replay.compared_with}" + (
            f" of step {replay.to_step}" if replay.compared_with == "checkpoint" else ""
        )
        equal = f"equal to {what}, bit for bit" if not replay.different_arrays else f"differs from {what}"
        rows.append((f"replay to {replay.to_step}", equal))
    print_checkpoint(out, checkpoint, [*rows, ("verdict", verdict)])
    for line in checkpoint.damaged_files:
        out.print(f"damaged file: {line}")
    for name in checkpoint.damaged_arrays:
        out.print(f"damaged array: {name}")
    for error in checkpoint.unusable:
        out.print(f"unusable: {error}")
    for error in checkpoint.changed:
        out.print(f"changed: {error}")
    if replay is not None and replay.different_arrays:
        for name in replay.different_arrays:
            out.print(f"different array: {name}")
        for change in replay.changed:
            out.print(f"changed since the run began: {change}")


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
