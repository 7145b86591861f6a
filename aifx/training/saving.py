"""The checkpoints of a run: the state, with what the host knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from aifx.config.best_by import Score, best_by_of, score_of
from aifx.parallel.group import Group
from aifx.programs.build import Programs
from aifx.programs.state import TrainState
from aifx.training.guards import Guard
from aifx.training.meter import Meter
from aifx.training.observers import EventDispatcher
from aifx.training.progress import Progress
from aifx.training.records import Record
from aifx.training.state import to_tree

if TYPE_CHECKING:
    from aifx.checkpoint.checkpoints import Checkpoints


class Saved(Protocol):
    """What a loop knows that belongs in a checkpoint, and what saves it."""

    programs: Programs
    checkpoints: Checkpoints
    group: Group
    dispatcher: EventDispatcher
    meter: Meter
    progress: Progress
    guard: Guard
    pending_validation: Record | None
    frozen_digest: str | None


def saves(loop: Saved, step: int) -> bool:
    """Whether a checkpoint on the run's disk is due after `step`."""
    every = loop.programs.config.checkpoint.every
    return every > 0 and step % every == 0


def saves_locally(loop: Saved, step: int) -> bool:
    """Whether one in `checkpoint.local_dir` is."""
    return loop.checkpoints.local is not None and step % loop.programs.config.checkpoint.local_every == 0


def save(
    loop: Saved, state: TrainState, step: int, validation: Mapping[str, Any] | None = None, *, force: bool = False
) -> None:
    """Save `state` as the checkpoint of `step`, whose record must have been drained."""
    loop.group.mark(f"the checkpoint of step {step}", "checkpoint")
    score = score_of(best_by_of(loop.programs.config), validation, loop.progress.recent[:-1])
    _save(loop, state, step, None if validation is None else validation["loss"], score, force=force)


def save_locally(loop: Saved, state: TrainState, step: int, validation: Mapping[str, Any] | None = None) -> None:
    """Save `state` on the host's disk, unless another checkpoint is still being written.

    The first one goes to the run's disk, which names the run that a local one is of. Process 0 decides: it is the last
    to have finished a save.
    """
    checkpoints = loop.checkpoints
    is_idle = loop.group.is_first and checkpoints.is_idle
    is_first_one = is_idle and checkpoints.latest() is None
    is_idle, is_first_one = loop.group.broadcast([is_idle, is_first_one])
    if is_first_one:
        save(loop, state, step, validation)
    elif is_idle:
        _save(loop, state, step, None, None, force=False, to=checkpoints.local)


def save_again(loop: Saved, state: TrainState, step: int) -> None:
    """Save what the host knows now in the checkpoint of `step`, which is that of `state`, if there is one."""
    is_first, local = loop.group.is_first, loop.checkpoints.local
    before = loop.checkpoints.info(step) if is_first else None  # of which the manifest is written
    is_local = is_first and before is None and local is not None and local.info(step) is not None
    is_saved, is_local = loop.group.broadcast([before is not None, is_local])
    if is_saved:
        loss, score = (before.validation_loss, before.score) if before else (None, None)
        _save(loop, state, step, loss, score, force=True)
    elif is_local:
        _save(loop, state, step, None, None, force=True, to=local)


def _save(
    loop: Saved,
    state: TrainState,
    step: int,
    validation_loss: float | None,
    score: Score | None,
    *,
    force: bool,
    to: Checkpoints | None = None,
) -> None:
    pending = loop.pending_validation
    host = {
        "units": loop.meter.units,
        "loss": loop.meter.loss,
        "progress": asdict(loop.progress),
        "pending_validation": asdict(pending) if pending else None,
        "guards": loop.guard.state.document(),
        "frozen_digest": loop.frozen_digest,
    }
    with loop.dispatcher.account.spending("checkpoint"):
        tree = to_tree(state, stacked=loop.programs.is_stacked)
        checkpoints = to or loop.checkpoints
        checkpoints.save(step, tree, host=host, validation_loss=validation_loss, score=score, force=force)
