"""`aifx ckpt prune`, `average` and `cp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.confirming import confirm_deletion
from aifx.commands.console.options import DryRunOption, JsonOption, RunOption
from aifx.commands.console.terminal import terminal
from aifx.core.json_files import readable_bytes
from aifx.verbs.completion import complete_checkpoint

if TYPE_CHECKING:
    from aifx.verbs.checkpoints import PrunedCheckpoints


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
