"""A run's checkpoints as `aifx ckpt` shows them: by their manifests, or one of them read in full."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aifx.checkpoint.manifest import (
    DAMAGED_SUFFIX,
    ArrayEntry,
    CheckpointInfo,
    Damaged,
    list_checkpoints,
    read_manifest,
)
from aifx.config.sections import CheckpointSection
from aifx.core.errors import CheckpointError, ExitCode
from aifx.core.project import RunDirectory
from aifx.core.results import Result
from aifx.core.steps import StepChoice


@dataclass(frozen=True)
class CheckpointList(Result):
    """A run's checkpoints, as `aifx ckpt ls --json` prints them. `set_aside` names folders of damaged ones."""

    run: str
    checkpoints: list[CheckpointInfo]
    set_aside: list[str]


@dataclass(frozen=True, kw_only=True)
class NamedArray(ArrayEntry):
    """An array of a checkpoint."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ShownCheckpoint(CheckpointInfo, Result):
    """A checkpoint by its manifest: what `aifx ckpt show --json` prints.

    Attributes:
        state_digest: of the state that was saved; None if the manifest cannot be read.
        arrays: None unless they were asked for.
    """

    run: str
    state_digest: str | None
    arrays: list[NamedArray] | None

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.damaged else ExitCode.OK


@dataclass(frozen=True)
class Replay:
    """Steps that were trained again from a checkpoint.

    Attributes:
        to_step: the last of them.
        compared_with: the run's checkpoint of that step, or if there is none a second training of the same steps.
        different_arrays: names of arrays that are not equal bit for bit.
        changed: what is not as when the run began and could explain a difference, such as the version of jax.
    """

    to_step: int
    compared_with: Literal["checkpoint", "second training"]
    different_arrays: list[str]
    changed: list[str]
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class VerifiedCheckpoint(CheckpointInfo, Result):
    """A checkpoint, read in full: what `aifx ckpt verify --json` prints.

    Attributes:
        state_digest: of the arrays that are on the disk; None if one cannot be read.
        damaged_files: what is wrong with the files, one line per file.
        damaged_arrays: names of arrays whose bytes are not what was saved.
        unusable: why the run cannot use a whole checkpoint: files of the run that are missing or have changed.
        changed: what has changed that the checkpoint names and the run can do without: where it came from, its data.
        replay: None unless it was asked for.
    """

    run: str
    state_digest: str | None
    damaged_files: list[str]
    damaged_arrays: list[str]
    unusable: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    replay: Replay | None = None

    @property
    def is_whole(self) -> bool:
        return not (self.damaged_files or self.damaged_arrays)

    @property
    def passed(self) -> bool:
        """Whether the checkpoint is whole, all that it names is the same, and so are steps that were trained again."""
        is_bound = not self.unusable and not self.changed
        return self.is_whole and is_bound and not (self.replay and self.replay.different_arrays)

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.passed else ExitCode.VERDICT


@dataclass(frozen=True)
class VerifiedCheckpoints(Result):
    """All checkpoints of a run: what `aifx ckpt verify --all --json` prints."""

    run: str
    passed: bool
    checkpoints: list[VerifiedCheckpoint]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.passed else ExitCode.VERDICT


def checkpoint_list(run: RunDirectory) -> CheckpointList:
    set_aside = sorted(p.name for p in run.checkpoints.glob(f"*{DAMAGED_SUFFIX}*") if p.is_dir())
    return CheckpointList(run.name, list_checkpoints(run.checkpoints), set_aside)


def show_checkpoint(run: RunDirectory, step: StepChoice | None, *, with_arrays: bool) -> ShownCheckpoint:
    """The contents of a checkpoint by its manifest; reads no arrays.

    Args:
        step: the last by default.

    Raises CheckpointError for a checkpoint that is not there.
    """
    info = choose_checkpoint(run, step, "show")
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
    info = choose_checkpoint(run, step, "verify")
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


def choose_checkpoint(run: RunDirectory, step: StepChoice | None, command: str) -> CheckpointInfo:
    """The checkpoint that a call of `aifx ckpt <command>` names, by default the last. Raises CheckpointError."""
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
