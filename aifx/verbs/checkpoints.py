"""Checkpoints of runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.project import Project, RunDirectory, find_project
from aifx.core.steps import StepChoice, parse_step
from aifx.verbs.arguments import Step, StrPath
from aifx.verbs.jobs import refuse_job

if TYPE_CHECKING:
    from aifx.checkpoint.copying import CopiedCheckpoint
    from aifx.checkpoint.inspection import CheckpointList, ShownCheckpoint, VerifiedCheckpoint, VerifiedCheckpoints
    from aifx.checkpoint.manifest import CheckpointInfo
    from aifx.checkpoint.orbax import OrbaxCheckpoint
    from aifx.checkpoint.verification import ArrayDifference, CheckpointDifference
    from aifx.runs.averaging import AveragedRun
    from aifx.runs.checkpoints import PrunedCheckpoints


def ckpt_ls(run: str | None = None, *, project: StrPath = ".") -> CheckpointList:
    """List a run's checkpoints by their manifests, without reading arrays.

    Args:
        run: name of the run; by default the run written last.
        project: a folder in the project.

    Example:
        >>> [checkpoint.step for checkpoint in aifx.ckpt_ls("main").checkpoints]
        [3]
    """
    from aifx.checkpoint.inspection import checkpoint_list

    return checkpoint_list(find_project(Path(project)).existing_run(run))


def ckpt_show(
    step: Step = None, *, run: str | None = None, arrays: bool = False, project: StrPath = "."
) -> ShownCheckpoint:
    """Read a checkpoint's manifest, with the digest of its state, without reading arrays.

    The verdict is bad if the manifest is damaged or files are missing.

    Args:
        step: of the checkpoint; by default the last.
        run: name of the run; by default the run written last.
        arrays: also list every array with its shape and digest.
        project: a folder in the project.

    Example:
        >>> aifx.ckpt_show("best", run="main").step
        3
    """
    from aifx.checkpoint.inspection import show_checkpoint

    return show_checkpoint(find_project(Path(project)).existing_run(run), parse_step(step), with_arrays=arrays)


def ckpt_show_orbax(folder: StrPath) -> OrbaxCheckpoint:
    """List the arrays of a checkpoint that Orbax wrote, with their types, shapes and sizes.

    Args:
        folder: the checkpoint's.

    Example:
        >>> aifx.ckpt_show_orbax("texts")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.checkpoint.orbax import read_orbax

    return read_orbax(Path(folder).expanduser())


def ckpt_verify(
    step: Step = None, *, run: str | None = None, replay: int = 0, project: StrPath = "."
) -> VerifiedCheckpoint:
    """Read every byte of a checkpoint, compare it with the saved digests, and name damaged files and arrays.

    The verdict is bad if the checkpoint is damaged, if a file of the run or the data that it names has changed, or if
    the steps that are trained again give another state.

    Args:
        step: of the checkpoint; by default the last, with `replay` one with another checkpoint so many steps later.
        run: name of the run; by default the run written last.
        replay: also train so many steps again, and compare with the run's checkpoint; without one, train twice.
        project: a folder in the project.

    Example:
        >>> aifx.ckpt_verify(run="main").passed
        True
    """
    from aifx.checkpoint.inspection import choose_checkpoint

    at, found = parse_step(step), find_project(Path(project))
    directory = found.existing_run(run)
    if replay:
        refuse_job("ckpt verify --replay")
        from aifx.training.replay import choose_replayed

        at = choose_replayed(directory, found, replay) if at is None else at
    return _verify(directory, found, choose_checkpoint(directory, at, "verify").step, replay)


def ckpt_verify_all(run: str | None = None, *, project: StrPath = ".") -> VerifiedCheckpoints:
    """Verify all checkpoints of a run, as `ckpt_verify` verifies one.

    Args:
        run: name of the run; by default the run written last.
        project: a folder in the project.

    Example:
        >>> [checkpoint.step for checkpoint in aifx.ckpt_verify_all("main").checkpoints]
        [3]
    """
    from aifx.checkpoint.inspection import VerifiedCheckpoints, choose_checkpoint
    from aifx.checkpoint.manifest import list_checkpoints

    found = find_project(Path(project))
    directory = found.existing_run(run)
    choose_checkpoint(directory, None, "verify")
    verified = [_verify(directory, found, info.step) for info in list_checkpoints(directory.checkpoints)]
    return VerifiedCheckpoints(directory.name, all(one.passed for one in verified), verified)


def _verify(run: RunDirectory, project: Project, step: StepChoice, num_steps: int = 0) -> VerifiedCheckpoint:
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


def _named_checkpoint(text: Step, project: Project, run: str | None) -> tuple[RunDirectory, int]:
    """The checkpoint that `STEP` or `RUN:STEP` names. Raises UsageError, CheckpointError."""
    from aifx.checkpoint.inspection import choose_checkpoint

    name, colon, step = str(text).rpartition(":")
    directory = project.existing_run(name if colon else run)
    return directory, choose_checkpoint(directory, parse_step(step), "show").step


def ckpt_diff(first: Step, second: Step, *, run: str | None = None, project: StrPath = ".") -> CheckpointDifference:
    """Compare two checkpoints array by array: norms, the largest change, and elements that are not finite.

    Every array is compared with its digest while it is read.

    Args:
        first: a step, "best" or "last", or "RUN:STEP".
        second: the same of another checkpoint.
        run: name of the run of both; by default the run written last.
        project: a folder in the project.

    Example:
        >>> aifx.ckpt_diff("best", "last", run="main").equal
        True
    """
    from aifx.checkpoint.verification import compare_checkpoints

    found = find_project(Path(project))
    return compare_checkpoints(_named_checkpoint(first, found, run), _named_checkpoint(second, found, run))


def ckpt_prune(
    run: str | None = None,
    *,
    keep_last: int | None = None,
    keep_best: int | None = None,
    keep_every: int = 0,
    dry_run: bool = False,
    confirm: Callable[[PrunedCheckpoints], None] | None = None,
    project: StrPath = ".",
) -> PrunedCheckpoints:
    """Delete checkpoints of a run that no argument keeps.

    Damaged checkpoints stay, and so do those that another run of the project needs. The run must not be training.

    Args:
        run: name of the run; by default the run written last.
        keep_last: newest checkpoints to keep; by default `checkpoint.keep_last`.
        keep_best: best ones to keep too; by default `checkpoint.keep_best`.
        keep_every: also keep steps that are multiples of this number.
        dry_run: delete nothing.
        confirm: called with the plan before something is deleted. What it raises ends the deletion.
        project: a folder in the project.

    Example:
        >>> pruned = aifx.ckpt_prune("main", keep_last=1)
        >>> [one.step for one in pruned.kept], pruned.removed
        ([3], [])
    """
    from aifx.kinds import read_config
    from aifx.runs.checkpoints import Policy, plan_pruning, prune

    found = find_project(Path(project))
    directory = found.existing_run(run)
    section = read_config(directory.config, found).checkpoint
    last = section.keep_last if keep_last is None else keep_last
    policy = Policy(last, section.keep_best if keep_best is None else keep_best, keep_every)
    plan = plan_pruning(found, directory, policy)
    if not plan.removed or dry_run:
        return plan
    if confirm is not None:
        confirm(plan)
    return prune(found, directory, policy)


def ckpt_average(*steps: Step, name: str, run: str | None = None, project: StrPath = ".") -> AveragedRun:
    """Make a run of the mean weights of several checkpoints of a run.

    The new run has the configuration and the assets of the run, and a checkpoint of the newest of these steps. It
    cannot be resumed.

    Args:
        steps: checkpoints to average: two or more.
        name: of the new run.
        run: name of the run; by default the run written last.
        project: a folder in the project.

    Example:
        >>> aifx.ckpt_average(3, name="averaged", run="main")
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.checkpoint.inspection import choose_checkpoint
    from aifx.runs.averaging import average_checkpoints

    found = find_project(Path(project))
    directory = found.existing_run(run)
    chosen = [choose_checkpoint(directory, parse_step(step), "show").step for step in steps]
    return average_checkpoints(found, directory, chosen, name)


def ckpt_cp(
    source: StrPath | int, target: StrPath, *, run: str | None = None, project: StrPath = "."
) -> CopiedCheckpoint:
    """Copy a checkpoint to a folder or a URL, or back into its run, and verify each file where it arrives.

    If the copy is interrupted, make it again: files that arrived are not copied again. For s3:// install s3fs, for
    gs:// gcsfs.

    Args:
        source: a step, "RUN:STEP", or a checkpoint's folder or URL.
        target: folder or URL to copy into, or "RUN:" for a run.
        run: name of the run; by default the run written last.
        project: a folder in the project.

    Example:
        >>> copied = aifx.ckpt_cp("main:best", "backup")
        >>> copied.step, copied.copied_bytes == copied.size_bytes
        (3, True)
    """
    from aifx.checkpoint.copying import copy_checkpoint, open_stored
    from aifx.core.stores import open_store
    from aifx.runs.checkpoints import copy_into_run

    given, to = str(source), str(target)
    if "/" in given:
        stored = open_stored(given)
    else:
        directory, step = _named_checkpoint(given, find_project(Path(project)), run)
        stored = open_stored(str(directory.checkpoints / str(step)))
    if to.endswith(":") and "/" not in to:
        return copy_into_run(stored, find_project(Path(project)).existing_run(to[:-1]))
    return copy_checkpoint(stored, open_store(to))
