"""The checkpoints of a run: the state, with what the host knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aifx.config.best_by import Score, best_by_of, score_of
from aifx.parallel.group import Group
from aifx.programs.build import Programs
from aifx.programs.state import TrainState
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.hooks.guard import Guard
from aifx.training.hooks.stop_vote import StopVote
from aifx.training.hooks.validation import Validation
from aifx.training.meter import Meter
from aifx.training.records import Record
from aifx.training.state import to_tree

if TYPE_CHECKING:
    from aifx.checkpoint.checkpoints import Checkpoints


class Saving(Hook):
    """Saves the state, and decides at which pauses: those of the schedule, the best, the last, and one that stops."""

    all_processes = True

    def __init__(
        self,
        programs: Programs,
        checkpoints: Checkpoints,
        group: Group,
        dispatcher: EventDispatcher,
        meter: Meter,
        guard: Guard,
        stop: StopVote,
        validation: Validation,
        frozen_digest: str | None = None,
    ) -> None:
        self._config = programs.config
        self._is_stacked = programs.is_stacked
        self._checkpoints = checkpoints
        self._group = group
        self._dispatcher = dispatcher
        self._meter = meter
        self._guard = guard
        self._stop = stop
        self._validation = validation
        self._frozen_digest = frozen_digest
        self._is_overdue = False  # since steps were skipped

    def pauses(self, step: int) -> bool:
        return self._is_overdue or self.is_due(step) or self._is_due_locally(step)

    def is_due(self, step: int) -> bool:
        """Whether `checkpoint.every` has a checkpoint after `step`."""
        every = self._config.checkpoint.every
        return every > 0 and step % every == 0

    def _is_due_locally(self, step: int) -> bool:
        """Whether one in `checkpoint.local_dir` is."""
        return self._checkpoints.local is not None and step % self._config.checkpoint.local_every == 0

    def at_pause(self, state: TrainState, record: Record) -> None:
        step, validation, is_skipping = record.step, self._validation, self._guard.state.in_a_row > 0
        if validation.made_up and validation.pending is not None:
            return  # it was interrupted again: the checkpoint that the run has says so already
        is_due = self._is_overdue or self.is_due(step)
        # Among steps that are skipped it waits: a run may have to go back to before them, and keeps few checkpoints.
        self._is_overdue = is_due and is_skipping
        is_best = validation.improved and self._config.checkpoint.keep_best > 0
        is_needed = self._stop.status is not None or step == self._config.train.num_steps or validation.made_up
        if is_needed or is_best or (is_due and not is_skipping):
            self.save(state, step, record.validation, force=validation.made_up)
        elif self._is_due_locally(step) and not is_skipping:
            self._save_locally(state, step, record.validation)

    def save(
        self, state: TrainState, step: int, validation: Mapping[str, Any] | None = None, *, force: bool = False
    ) -> None:
        """Save `state` as the checkpoint of `step`, whose record must have been drained."""
        self._group.mark(f"the checkpoint of step {step}", "checkpoint")
        score = score_of(best_by_of(self._config), validation, self._validation.progress.recent[:-1])
        self._save(state, step, None if validation is None else validation["loss"], score, force=force)

    def _save_locally(self, state: TrainState, step: int, validation: Mapping[str, Any] | None) -> None:
        """Save `state` on the host's disk, unless another checkpoint is still being written.

        The first one goes to the run's disk, which names the run that a local one is of. Process 0 decides: it is the
        last to have finished a save.
        """
        is_idle = self._group.is_first and self._checkpoints.is_idle
        is_first_one = is_idle and self._checkpoints.latest() is None
        is_idle, is_first_one = self._group.broadcast([is_idle, is_first_one])
        if is_first_one:
            self.save(state, step, validation)
        elif is_idle:
            self._save(state, step, None, None, force=False, to=self._checkpoints.local)

    def save_again(self, state: TrainState, step: int) -> None:
        """Save what the host knows now in the checkpoint of `step`, which is that of `state`, if there is one."""
        is_first, local = self._group.is_first, self._checkpoints.local
        before = self._checkpoints.info(step) if is_first else None  # of which the manifest is written
        is_local = is_first and before is None and local is not None and local.info(step) is not None
        is_saved, is_local = self._group.broadcast([before is not None, is_local])
        if is_saved:
            loss, score = (before.validation_loss, before.score) if before else (None, None)
            self._save(state, step, loss, score, force=True)
        elif is_local:
            self._save(state, step, None, None, force=True, to=local)

    def _save(
        self,
        state: TrainState,
        step: int,
        validation_loss: float | None,
        score: Score | None,
        *,
        force: bool,
        to: Checkpoints | None = None,
    ) -> None:
        pending = self._validation.pending
        host = {
            "units": self._meter.units,
            "loss": self._meter.loss,
            "progress": asdict(self._validation.progress),
            "pending_validation": asdict(pending) if pending else None,
            "guards": self._guard.state.document(),
            "frozen_digest": self._frozen_digest,
        }
        with self._dispatcher.account.spending("checkpoint"):
            tree = to_tree(state, stacked=self._is_stacked)
            checkpoints = to or self._checkpoints
            checkpoints.save(step, tree, host=host, validation_loss=validation_loss, score=score, force=force)
