"""The loop: a run from one step to the next."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import jax

from aifx.config.best_by import best_by_of
from aifx.core.statuses import ProcessStatus
from aifx.data.base import Batch
from aifx.evaluation.held_out import evaluate_split
from aifx.parallel.group import Group
from aifx.parallel.tally import Tally
from aifx.programs.build import Programs
from aifx.programs.state import TrainState
from aifx.specs import Params
from aifx.training.guards import Guard
from aifx.training.meter import Meter
from aifx.training.observers import EventDispatcher
from aifx.training.pace import Pace
from aifx.training.progress import Progress
from aifx.training.records import Record
from aifx.training.sampling import TextSampler
from aifx.training.saving import save, save_locally, saves, saves_locally
from aifx.training.signals import StopSignals, status_of
from aifx.training.timing import DataWait
from aifx.training.verified_step import VerifiedStep
from aifx.training.voting import Ballot, Interrupted, agree, count_units, votes
from aifx.training.watchdog import Watchdog

if TYPE_CHECKING:
    from aifx.checkpoint.checkpoints import Checkpoints

StepFn: TypeAlias = Callable[[TrainState, Params, Any], tuple[TrainState, jax.Array]]


@dataclass(frozen=True)
class LoopResult:
    """Why the loop ended (completed, early_stopped, interrupted, preempted), after which step, in what state."""

    status: ProcessStatus
    step: int
    state: TrainState


@dataclass
class Loop:
    """A run that is ready to take its steps."""

    programs: Programs
    step_fn: StepFn  # `Programs.train_step`, compiled
    frozen: Params  # the arrays that no step changes
    meter: Meter
    checkpoints: Checkpoints
    dispatcher: EventDispatcher
    stop: StopSignals
    progress: Progress
    guard: Guard
    sampler: TextSampler | None = None
    pending_validation: Record | None = None  # of a step whose validation a signal prevented
    frozen_digest: str | None = None
    group: Group = field(default_factory=Group)
    watch: Watchdog | None = None
    is_overdue: bool = field(default=False, init=False)  # a checkpoint, since steps were skipped

    def __post_init__(self) -> None:
        self.tally = Tally(self.programs.layout, count=3)
        self.verified_step = VerifiedStep(self.step_fn, self.group, self.programs.config.guards.verify_every)
        self.pace = Pace(self.group, self.dispatcher)

    def run(self, state: TrainState, batches: Generator[Batch, None, None], step: int) -> LoopResult:
        """From `state`, that of `step`, to the end of the run.

        The host is one step ahead of the device and waits for it only if the run pauses: to validate, save or stop.
        Raises NotFinite, Rollback, and what the observers and the checkpoints raise.
        """
        last, rows = self.programs.config.train.num_steps, self.programs.config.train.global_batch_size
        account = self.dispatcher.account
        account.begin_steps(step)
        stopping = self.pause(state, self.pending_validation) if self.pending_validation else None
        with DataWait(account) as waiting, closing(batches), account.spending("step"):
            while step < last and not stopping and not self.has_converged:
                step += 1
                self.group.mark(f"the batch of step {step}", "data")
                requested_at = time.perf_counter()
                with waiting(self.meter.computing):
                    batch = next(batches)
                waited_s = time.perf_counter() - requested_at
                self.group.mark(f"step {step}", "step")
                state, numbers = self.verified_step(step, state, self.frozen, self.programs.place(batch, rows))
                self.pace.started(time.perf_counter() - requested_at)
                sums = self.tally((count_units(self.programs, batch, rows), *votes(self.stop.requested)))
                self.meter.dispatched(step, numbers, sums, batch, waited_s)
                pausing = self.meter.has_votes or self.is_overdue or step == last or self.validates(step)
                pausing = pausing or saves(self, step) or saves_locally(self, step)
                for record, judged in self.meter.drain(leave=0 if pausing else 1):
                    self.guard.judge(record, judged)
                    self.pace.ended(record.step_time_s)
                    if self.watch is not None:
                        self.watch.step_took(record.step_time_s)
                    if record.step == step:
                        stopping = self.pause(state, record)
                    else:
                        self.dispatcher.record(record)
        if stopping:
            return LoopResult(status_of(stopping), step, state)
        return LoopResult("completed" if step == last else "early_stopped", step, state)

    def pause(self, state: TrainState, record: Record) -> signal.Signals | None:
        """Between two steps: validate, report, save. Returns the signal that the run must end for."""
        config, step, stopping = self.programs.config, record.step, agree(self.tally, self.stop)
        self.pace.compare(step)
        was_pending, improved = self.pending_validation is not None, False
        self.pending_validation = None
        if self.validates(step):
            try:
                with self.dispatcher.account.spending("evaluation"):
                    record, improved = self.validate(state, record)
            except Interrupted:  # the next process validates, and writes the record again
                self.pending_validation, stopping = record, agree(self.tally, self.stop)
                if was_pending:
                    return stopping
        self.dispatcher.record(record)
        is_last = step == config.train.num_steps
        is_due = saves(self, step) or self.is_overdue
        # Among steps that are skipped it waits: a run may have to go back to before them, and keeps few checkpoints.
        self.is_overdue = is_due and self.guard.state.in_a_row > 0
        is_due = is_due and not self.is_overdue
        is_best = improved and config.checkpoint.keep_best > 0
        if stopping or is_best or is_last or was_pending or self.has_converged or is_due:
            save(self, state, step, record.validation, force=was_pending)
        elif saves_locally(self, step) and self.guard.state.in_a_row == 0:
            save_locally(self, state, step, record.validation)
        self.meter.resume_clock()
        return None if is_last and self.pending_validation is None else stopping

    def validate(self, state: TrainState, record: Record) -> tuple[Record, bool]:
        """The record with its validation, and whether that is the best so far. Raises Interrupted."""
        self.group.mark(f"the validation after step {record.step}", "evaluation")
        started = time.perf_counter()
        num_batches = self.programs.config.train.validation_batches or None
        ballot = Ballot(self.tally, self.stop)
        metrics = evaluate_split(
            self.programs, state.evaluated, self.frozen, "validation", num_batches=num_batches, before_batch=ballot
        )
        before, config = self.progress, self.programs.config
        progress = before.after(record.step, metrics, best_by_of(config), config.checkpoint.best_over)
        self.progress = replace(progress, thresholds=self.programs.objective.thresholds(metrics))
        improved = self.progress.best_step == record.step
        duration_s = time.perf_counter() - started
        self.dispatcher.event(
            "validation", step=record.step, loss=metrics["loss"], improved=improved, duration_s=duration_s
        )
        if (warning := self.progress.warning(config, before)) is not None:
            self.dispatcher.warn(warning)
        if self.sampler is not None:
            text = self.sampler(state.evaluated, self.frozen)
            self.dispatcher.event("sample", step=record.step, prompt=self.sampler.prompt, text=text)
        return replace(record, validation=metrics), improved

    def validates(self, step: int) -> bool:
        train = self.programs.config.train
        return train.validate_every > 0 and (step % train.validate_every == 0 or step == train.num_steps)

    @property
    def has_converged(self) -> bool:
        """Whether `train.early_stopping` validations went by without improvement; 0 of them never do."""
        return 0 < self.programs.config.train.early_stopping <= self.progress.since_best
