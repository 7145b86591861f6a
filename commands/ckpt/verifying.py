"""`aifx ckpt verify`: a checkpoint compared with what was saved, and with what its steps give again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.ckpt.page import StepArgument, print_checkpoint, summary
from aifx.commands.console.options import JsonOption, RunOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import UsageError

if TYPE_CHECKING:
    from aifx.verbs.checkpoints import VerifiedCheckpoint


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
            _print(out, checkpoint)


def _print(out: Output, checkpoint: VerifiedCheckpoint) -> None:
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
