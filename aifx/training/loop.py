"""The loop: a run from one step to the next. What else happens around its steps is in `hooks/`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from aifx.core.statuses import ProcessStatus
from aifx.data.base import Batch
from aifx.parallel.group import Group
from aifx.programs.build import Programs
from aifx.programs.state import TrainState
from aifx.runs.records import TimeAccount
from aifx.specs import Params
from aifx.training.hook import Hook, Stop, TakeStep
from aifx.training.hooks.stop_vote import StopVote
from aifx.training.meter import DataWait, Meter
from aifx.training.records import Record

StepFn: TypeAlias = Callable[[TrainState, Params, Any], tuple[TrainState, jax.Array]]


@dataclass(frozen=True)
class LoopResult:
    """The end of the loop: its status (completed, early_stopped, interrupted, preempted), last step and state."""

    status: ProcessStatus
    step: int
    state: TrainState


@dataclass(frozen=True)
class Loop:
    """A run that is ready to take its steps."""

    programs: Programs
    step_fn: StepFn  # `Programs.train_step`, compiled
    frozen: Params  # the arrays that no step changes
    meter: Meter
    stop: StopVote
    hooks: Sequence[Hook]  # in the order in which they are called
    account: TimeAccount
    group: Group

    # The order of a step. JAX returns from a step at once, with arrays that the device has yet to compute (asynchronous
    # dispatch, https://docs.jax.dev/en/latest/async_dispatch.html). If the host read the loss of step n right away, it
    # would wait for the device, and the device would then wait until the host had read and placed the next batch. So
    # the host dispatches step n + 1 first and reads the numbers of step n afterwards: it waits while the device has
    # work, and a record is one step late. The guards judge step n while n + 1 is computed, so the program itself leaves
    # out an update that is not finite (`TrainStep.__call__`). If the run pauses, the host waits for all steps.
    def run(
        self, state: TrainState, batches: Generator[Batch, None, None], step: int, pending: Record | None = None
    ) -> LoopResult:
        """Train from `state`, which is the one after `step`, to the end of the run.

        The host is one step ahead of the device, and waits for it only if the run pauses. Raises what the hooks raise.

        Args:
            pending: the record of `step`, if the process before left its validation to this one.
        """
        last = self.programs.config.train.num_steps
        take_step: TakeStep = self.take_step
        for hook in reversed(self.hooks):
            take_step = hook.around_step(take_step)
        self.account.begin_steps(step)
        if pending is not None:
            self.report(pending, state)
        with DataWait(self.account) as waiting, closing(batches), self.account.spending("step"):
            while step < last and self.stop.status is None:
                step += 1
                self.group.mark(f"the batch of step {step}", "data")
                requested_at = time.perf_counter()
                with waiting(self.meter.computing):
                    batch = next(batches)
                waited_s = time.perf_counter() - requested_at
                self.group.mark(f"step {step}", "step")
                state, numbers = take_step(step, state, batch)
                self.meter.dispatched(step, numbers, self.stop.count(batch), batch, waited_s)
                pauses = step == last or self.meter.has_votes or any(hook.pauses(step) for hook in self.hooks)
                for record, its_batch in self.meter.drain(leave=0 if pauses else 1):
                    for hook in self.hooks:
                        hook.after_step(record, its_batch)
                    self.report(record, state if record.step == step else None)
        return LoopResult(self.stop.status or "completed", step, state)

    def take_step(self, step: int, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        """Dispatch a step. Returns the next state and STEP_METRICS, which the device has yet to compute."""
        return self.step_fn(
            state, self.frozen, self.programs.place(batch, self.programs.config.train.global_batch_size)
        )

    def report(self, record: Record, state: TrainState | None = None) -> None:
        """Call `on_record` of each hook for a step, and before it `at_pause` if the run has paused in `state`."""
        for hook in self.hooks:
            answer = None if state is None else hook.at_pause(state, record)
            if isinstance(answer, Stop):
                self.stop.stop_early(record.step)
            record = answer if isinstance(answer, Record) else record
            hook.on_record(record)
        if state is not None:
            self.meter.resume_clock()
