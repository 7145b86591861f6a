"""A run's checkpoints as `aifx ckpt` shows them: all of them by their manifests, or one read in full."""

from __future__ import annotations

from dataclasses import dataclass

from aifx.checkpoint.listing import CheckpointInfo, list_checkpoints
from aifx.checkpoint.manifest import DAMAGED_SUFFIX, ArrayEntry, Damaged, read_manifest
from aifx.config.sections import CheckpointSection
from aifx.core.errors import CheckpointError
from aifx.core.project import RunDirectory
from aifx.core.steps import StepChoice


@dataclass(frozen=True)
class CheckpointList:
    """What `aifx ckpt ls --json` prints. `set_aside` names folders of checkpoints that were found damaged."""

    run: str
    checkpoints: list[CheckpointInfo]
    set_aside: list[str]


@dataclass(frozen=True, kw_only=True)
class NamedArray(ArrayEntry):
    """An array of a checkpoint."""

    name: str


@dataclass(frozen=True, kw_only=True)
class VerifiedCheckpoint(CheckpointInfo):
    """A checkpoint, read and verified: what `aifx ckpt show --json` prints.

    Attributes:
        state_digest: of what is on the disk; None if it cannot be read.
        damage: arrays whose bytes are not what was saved, or why nothing can be read.
        arrays: None unless they were asked for.
    """

    run: str
    state_digest: str | None
    damage: list[str]
    arrays: list[NamedArray] | None


def checkpoint_list(run: RunDirectory) -> CheckpointList:
    set_aside = sorted(p.name for p in run.checkpoints.glob(f"*{DAMAGED_SUFFIX}*") if p.is_dir())
    return CheckpointList(run.name, list_checkpoints(run.checkpoints), set_aside)


def verify_checkpoint(run: RunDirectory, step: StepChoice | None, *, with_arrays: bool) -> VerifiedCheckpoint:
    """Read a checkpoint and compare each array with its digest.

    Args:
        step: the last by default.

    Raises CheckpointError for a checkpoint that is not there.
    """
    info = _choose(run, step)
    from aifx.checkpoint.checkpoints import Checkpoints  # imports jax and Orbax, which listing does not need

    digest: str | None = None
    try:
        found = Checkpoints(run.checkpoints, CheckpointSection.model_validate({})).verify(info.step)
        digest, damage = found.state_digest, list(found.damaged)
    except Damaged as error:
        damage = [error.why]
    arrays = None
    if with_arrays:
        entries = {} if info.damaged else read_manifest(run.checkpoints / str(info.step)).arrays
        arrays = [NamedArray(name=name, **vars(entry)) for name, entry in entries.items()]
    return VerifiedCheckpoint(**vars(info), run=run.name, state_digest=digest, damage=damage, arrays=arrays)


def _choose(run: RunDirectory, step: StepChoice | None) -> CheckpointInfo:
    checkpoints = list_checkpoints(run.checkpoints)
    if not checkpoints:
        what = f"run {run.name} has no checkpoint"
        raise CheckpointError(what, "nothing was saved yet", f"aifx train --run {run.name}")
    if step in (None, "last"):
        return checkpoints[-1]
    for checkpoint in checkpoints:
        if checkpoint.step == step or (step == "best" and checkpoint.is_best):
            return checkpoint
    if step == "best":
        what = f"run {run.name} has no best checkpoint"
        raise CheckpointError(what, "none was validated", f"aifx ckpt show last --run {run.name}")
    there = f"it has {', '.join(str(c.step) for c in checkpoints)}"
    raise CheckpointError(f"run {run.name} has no checkpoint of step {step}", there, f"aifx ckpt ls --run {run.name}")
