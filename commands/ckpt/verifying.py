"""`aifx ckpt verify`: a checkpoint compared with what was saved, and with what its steps give again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.ckpt.page import StepArgument, print_checkpoint, summary
from aifx.commands.console.jobs import refuse_job
from aifx.commands.console.options import JsonOption, RunOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode, UsageError
from aifx.core.project import Project, RunDirectory, find_project
from aifx.core.steps import StepChoice, parse_step

if TYPE_CHECKING:
    from aifx.checkpoint.inspection import VerifiedCheckpoint


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
        from aifx.checkpoint.inspection import VerifiedCheckpoints, choose_checkpoint
        from aifx.checkpoint.listing import list_checkpoints

        if every and (step is not None or replay):
            other = "a step" if step is not None else "--replay"
            raise UsageError(f"--all cannot be used with {other}", "", "aifx ckpt verify --all")
        at, project = parse_step(step), find_project()
        directory = project.existing_run(run)
        if replay:
            refuse_job("ckpt verify --replay")
            from aifx.training.replay import choose_replayed

            at = choose_replayed(directory, project, replay) if at is None else at
        first = choose_checkpoint(directory, at, "verify")
        if not every:
            found = [_verify(directory, project, first.step, replay)]
            out.document(found[0])
        else:
            infos = list_checkpoints(directory.checkpoints)
            found = [_verify(directory, project, info.step, 0) for info in infos]
            out.document(VerifiedCheckpoints(directory.name, all(c.passed for c in found), found))
        for number, checkpoint in enumerate(found):
            if number:
                out.print("")
            _print(out, directory, checkpoint)
        if not all(checkpoint.passed for checkpoint in found):
            raise SystemExit(ExitCode.VERDICT)


def _verify(run: RunDirectory, project: Project, step: StepChoice, num_steps: int) -> VerifiedCheckpoint:
    from aifx.checkpoint.inspection import verify_checkpoint
    from aifx.checkpoint.manifest import read_manifest
    from aifx.kinds import read_config
    from aifx.runs.binding import binding_errors, record_errors

    checkpoint = verify_checkpoint(run, step)
    if checkpoint.is_whole and (bound := read_manifest(run.checkpoints / str(checkpoint.step)).run):
        config = read_config(run.config, project)
        unusable = [str(error) for error in binding_errors(run, config, checkpoint.step, bound)]
        changed = [str(error) for error in record_errors(run, config.apply_to(project), checkpoint.step, bound)]
        checkpoint = replace(checkpoint, unusable=unusable, changed=changed)
    if num_steps and checkpoint.is_whole and not checkpoint.unusable:
        from aifx.training.replay import replay

        checkpoint = replace(checkpoint, replay=replay(run, project, checkpoint.step, num_steps))
    return checkpoint


def _print(out: Output, run: RunDirectory, checkpoint: VerifiedCheckpoint) -> None:
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
    print_checkpoint(out, run.checkpoints / str(checkpoint.step), [*rows, ("verdict", verdict)])
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
