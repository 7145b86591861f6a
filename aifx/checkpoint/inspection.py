"""A run's checkpoints as `aifx ckpt` shows them: by their manifests, or one of them read in full."""

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
class ShownCheckpoint(CheckpointInfo):
    """A checkpoint by its manifest: what `aifx ckpt show --json` prints.

    Attributes:
        state_digest: of the state that was saved; None if the manifest cannot be read.
        arrays: None unless they were asked for.
    """

    run: str
    state_digest: str | None
    arrays: list[NamedArray] | None


@dataclass(frozen=True, kw_only=True)
class VerifiedCheckpoint(CheckpointInfo):
    """A checkpoint, read in full: what `aifx ckpt verify --json` prints.

    Attributes:
        state_digest: of the arrays that are on the disk; None if one cannot be read.
        damaged_files: what is wrong with the files, one line per file.
        damaged_arrays: names of arrays whose bytes are not what was saved.
        unusable: why the run cannot use a whole checkpoint: the base run of its adapters is missing or has changed.
    """

    run: str
    state_digest: str | None
    damaged_files: list[str]
    damaged_arrays: list[str]
    unusable: str | None = None

    @property
    def is_whole(self) -> bool:
        return not (self.damaged_files or self.damaged_arrays)


def checkpoint_list(run: RunDirectory) -> CheckpointList:
    set_aside = sorted(p.name for p in run.checkpoints.glob(f"*{DAMAGED_SUFFIX}*") if p.is_dir())
    return CheckpointList(run.name, list_checkpoints(run.checkpoints), set_aside)


def show_checkpoint(run: RunDirectory, step: StepChoice | None, *, with_arrays: bool) -> ShownCheckpoint:
    """What the manifest of a checkpoint says; reads no arrays.

    Args:
        step: the last by default.

    Raises CheckpointError for a checkpoint that is not there.
    """
    info = _choose(run, step, "show")
    try:
        manifest = read_manifest(run.checkpoints / str(info.step))
    except Damaged:
        return ShownCheckpoint(**vars(info), run=run.name, state_digest=None, arrays=[] if with_arrays else None)
    arrays = [NamedArray(name=name, **vars(entry)) for name, entry in manifest.arrays.items()] if with_arrays else None
    return ShownCheckpoint(**vars(info), run=run.name, state_digest=manifest.state_digest, arrays=arrays)


def verify_checkpoint(run: RunDirectory, step: StepChoice | None) -> VerifiedCheckpoint:
    """Read every byte of a checkpoint and compare it with its digests.

    Args:
        step: the last by default.

    Raises CheckpointError for a checkpoint that is not there.
    """
    info = _choose(run, step, "verify")
    from aifx.checkpoint.checkpoints import Checkpoints  # imports jax and TensorStore, which listing does not need

    try:
        found = Checkpoints(run.checkpoints, CheckpointSection.model_validate({})).verify(info.step)
    except Damaged as error:
        digest, files, arrays = None, [error.why], []
    else:
        digest, files, arrays = found.state_digest, list(found.files), list(found.damaged)
    return VerifiedCheckpoint(
        **vars(info), run=run.name, state_digest=digest, damaged_files=files, damaged_arrays=arrays
    )


def _choose(run: RunDirectory, step: StepChoice | None, command: str) -> CheckpointInfo:
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
        raise CheckpointError(what, "none was validated", f"aifx ckpt {command} last --run {run.name}")
    there = f"it has {', '.join(str(c.step) for c in checkpoints)}"
    raise CheckpointError(f"run {run.name} has no checkpoint of step {step}", there, f"aifx ckpt ls --run {run.name}")
