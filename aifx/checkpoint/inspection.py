"""A run's checkpoints as `aifx ckpt` shows them: all of them by their manifests, or one read in full."""

from __future__ import annotations

from dataclasses import dataclass

from aifx.checkpoint.listing import CheckpointInfo, list_checkpoints
from aifx.checkpoint.manifest import Damaged, read_manifest, set_aside_folders
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


@dataclass(frozen=True)
class NamedArray:
    """An array of a checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


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
    set_aside = [folder.name for folder in set_aside_folders(run.checkpoints)]
    return CheckpointList(run.name, list_checkpoints(run.checkpoints), set_aside)


def verify_checkpoint(run: RunDirectory, step: StepChoice | None, *, with_arrays: bool) -> VerifiedCheckpoint:
    """Read a checkpoint and compare each array with its digest.

    Args:
        step: the last by default.

    Raises CheckpointError for a checkpoint that is not there.
    """
    info = _choose(run, step)
    digest, damage = _verify(run, info.step)
    arrays = None
    if with_arrays:
        entries = {} if info.damaged else read_manifest(run.checkpoints / str(info.step)).arrays
        arrays = [NamedArray(name, **vars(entry)) for name, entry in entries.items()]
    return VerifiedCheckpoint(**vars(info), run=run.name, state_digest=digest, damage=damage, arrays=arrays)


def _choose(run: RunDirectory, step: StepChoice | None) -> CheckpointInfo:
    checkpoints = list_checkpoints(run.checkpoints)
    if not checkpoints:
        raise CheckpointError(
            f"run {run.name} has no checkpoint", "nothing was saved yet", f"aifx train --run {run.name}"
        )
    if step in (None, "last"):
        return checkpoints[-1]
    if step == "best":
        best = next((c for c in checkpoints if c.is_best), None)
        if best is None:
            raise CheckpointError(
                f"run {run.name} has no best checkpoint", "none was validated", f"aifx ckpt show last --run {run.name}"
            )
        return best
    found = next((c for c in checkpoints if c.step == step), None)
    if found is None:
        there = ", ".join(str(c.step) for c in checkpoints)
        raise CheckpointError(
            f"run {run.name} has no checkpoint of step {step}", f"it has {there}", f"aifx ckpt ls --run {run.name}"
        )
    return found


def _verify(run: RunDirectory, step: int) -> tuple[str | None, list[str]]:
    """The digest of what is on the disk, and what is damaged."""
    from aifx.checkpoint.checkpoints import Checkpoints  # imports jax and Orbax, which listing does not need

    try:
        found = Checkpoints(run.checkpoints, CheckpointSection.model_validate({})).verify(step)
    except Damaged as error:
        return None, [error.why]
    return found.state_digest, list(found.damaged)
