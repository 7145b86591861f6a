"""The loop: a run from one step to the next."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from aifx.config import Config
from aifx.config.best_by import best_by_of, score_of
from aifx.core.statuses import ProcessStatus
from aifx.data.base import Batch
from aifx.parallel import place_batch
from aifx.training.events import EventDispatcher
from aifx.training.meter import Meter
from aifx.training.records import Record
from aifx.training.signals import StopSignals, status_of
from aifx.training.state import TrainState, to_tree
from aifx.training.step import StepFn, StepSpec
from aifx.training.validation import Interrupted, Progress, Validator

if TYPE_CHECKING:
    from aifx.checkpoint import Checkpoints


@dataclass(frozen=True)
class LoopResult:
    """Why the loop ended, after which step, in what state."""

    status: ProcessStatus
    step: int
    state: TrainState


@dataclass
class Loop:
    """A run that is ready to take its steps.

    Attributes:
        progress: how validation went so far.
        pending_validation: the record of the first step when a signal kept its validation from being done.
    """

    config: Config
    step_spec: StepSpec
    step_fn: StepFn
    meter: Meter
    checkpoints: Checkpoints
    validator: Validator
    dispatcher: EventDispatcher
    stop: StopSignals
    progress: Progress
    pending_validation: Record | None = None

    def run(self, state: TrainState, batches: Generator[Batch, None, None], first: int) -> LoopResult:
        """From `state`, that of step `first`, to the end of the run.

        The host is one step ahead of the device and waits for it only where the run pauses: to validate, save or stop.
        Raises NotFinite, and what the observers and the checkpoints raise.
        """
        last = self.config.train.num_steps
        stopping = self._run_pending_validation(state) if self.pending_validation else None
        step = first
        with closing(batches):
            while step < last and not stopping and not self._has_converged:
                step += 1
                asked = time.perf_counter()
                batch = next(batches)
                waited_s = time.perf_counter() - asked
                state, numbers = self.step_fn(state, place_batch(batch, self.step_spec.mesh))
                self.meter.dispatched(step, numbers, batch, self.step_spec.task.units(batch), waited_s)

                stopping = self.stop.requested
                pausing = bool(stopping) or step == last or self._validates(step) or self._saves(step)
                for record in self.meter.drain(leave=0 if pausing else 1):
                    if record.step == step:
                        stopping = self._pause(state, record, stopping)
                    else:
                        self.dispatcher.record(record)
        if stopping:
            return LoopResult(status_of(stopping), step, state)
        return LoopResult("completed" if step == last else "early_stopped", step, state)

    def _pause(self, state: TrainState, record: Record, stopping: signal.Signals | None) -> signal.Signals | None:
        """Between two steps: validate, tell, save. Returns the signal that the run must end for."""
        step, last = record.step, self.config.train.num_steps
        improved = False
        if self._validates(step):
            try:
                record, improved = self._validate(state, record)
            except Interrupted:  # the next process validates, and writes the record again
                self.dispatcher.record(record)
                self._save(state, record, pending_validation=True)
                return self.stop.requested
        self.dispatcher.record(record)
        if (
            stopping
            or (improved and self.config.checkpoint.keep_best)
            or self._saves(step)
            or step == last
            or self._has_converged
        ):
            self._save(state, record)
        self.meter.resume_clock()
        return stopping if step < last else None

    def _run_pending_validation(self, state: TrainState) -> signal.Signals | None:
        """The validation that a signal kept from being done. Returns the signal that does so again."""
        assert self.pending_validation is not None
        try:
            record, _ = self._validate(state, self.pending_validation)
        except Interrupted:
            return self.stop.requested
        self.dispatcher.record(record)
        self._save(state, record, again=True)
        self.meter.resume_clock()
        return None

    def _validate(self, state: TrainState, record: Record) -> tuple[Record, bool]:
        """The record with its validation, and whether that is the best so far. Raises Interrupted."""
        started = time.perf_counter()
        metrics = self.validator(state.params)
        self.progress = self.progress.after(record.step, metrics, best_by_of(self.config))
        improved = self.progress.best_step == record.step
        duration_s = time.perf_counter() - started
        self.dispatcher.event(
            "validation", step=record.step, loss=metrics["loss"], improved=improved, duration_s=duration_s
        )
        return replace(record, validation=metrics), improved

    def _save(
        self, state: TrainState, record: Record, *, pending_validation: bool = False, again: bool = False
    ) -> None:
        host: dict[str, Any] = {
            "units": self.meter.units,
            "loss": record.loss,
            "progress": self.progress.document(),
            "pending_validation": asdict(record) if pending_validation else None,
        }
        validation_loss = None if record.validation is None else record.validation["loss"]
        self.checkpoints.save(
            record.step,
            to_tree(state, stacked=self.step_spec.is_stacked),
            host=host,
            validation_loss=validation_loss,
            score=score_of(best_by_of(self.config), record.validation),
            force=again,
        )

    def _validates(self, step: int) -> bool:
        every = self.config.train.validate_every
        return every > 0 and (step % every == 0 or step == self.config.train.num_steps)

    def _saves(self, step: int) -> bool:
        every = self.config.checkpoint.every
        return every > 0 and step % every == 0

    @property
    def _has_converged(self) -> bool:
        return self.progress.is_exhausted(self.config.train.early_stopping)
