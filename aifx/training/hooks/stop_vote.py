"""The vote by which the processes of a job stop after the same step, and the count of what all of them read."""

from __future__ import annotations

import signal
from collections.abc import Callable

import numpy as np

from aifx.core.statuses import ProcessStatus
from aifx.core.stop_signals import StopSignals, status_of
from aifx.data.base import Batch
from aifx.programs.build import Programs
from aifx.programs.state import TrainState
from aifx.tasks.base import dataset_of
from aifx.training.hook import Hook
from aifx.training.meter import SummedCounts, SumReducer
from aifx.training.records import Record


class Interrupted(Exception):
    """Validation gave way to a signal, and left the state unchanged."""


class StopVote(Hook):
    """Adds up beside the program what the processes read and whether they were asked to stop, so that all stop alike.

    Attributes:
        status: with which the run ends before its last step; None while it goes on.
    """

    all_processes = True

    def __init__(self, programs: Programs, signals: StopSignals) -> None:
        self.status: ProcessStatus | None = None
        self._num_steps = programs.config.train.num_steps
        self._own_rows = programs.layout.own_rows(programs.config.train.global_batch_size)
        self._count = dataset_of(programs.task).counts
        self._unit = programs.objective.unit
        self._signals = signals
        self._sum = SumReducer(programs.layout, count=3)

    def count(self, batch: Batch) -> SummedCounts:
        """Units ("tokens") of a batch, SIGINTs and other signals, over all processes. They are not waited for."""
        parts = ({name: values[rows] for name, values in batch.items()} for rows in self._own_rows)
        return self._votes(sum(self._count(part)[self._unit] for part in parts))

    def at_pause(self, state: TrainState, record: Record) -> None:
        """A run that has taken its last step is complete, whatever was asked."""
        if record.step < self._num_steps:
            self.decide()

    def decide(self) -> None:
        """Wait for the votes of all processes, and take the status that they give."""
        requested = requested_by(self._votes())
        self.status = None if requested is None else status_of(requested)

    def stop_early(self, step: int) -> None:
        """End the run after `step` as early_stopped, unless that is its last or a signal ends it."""
        if step < self._num_steps:
            self.status = self.status or "early_stopped"

    def interruption(self) -> Callable[[], None]:
        """A function to call before each batch of a validation. It raises Interrupted once a process is to stop.

        Several processes learn it one batch late, since they do not wait for the sum.
        """
        before: SummedCounts | None = None

        def vote() -> None:
            nonlocal before
            votes = self._votes()
            known = votes if isinstance(votes, np.ndarray) else before
            if known is not None and requested_by(known) is not None:
                raise Interrupted
            before = votes

        return vote

    def _votes(self, units: int = 0) -> SummedCounts:
        requested = self._signals.requested
        return self._sum((units, requested == signal.SIGINT, requested in (signal.SIGTERM, signal.SIGHUP)))


def requested_by(sums: SummedCounts) -> signal.Signals | None:
    """The signal that stops a job, from the sums of `StopVote`; None if no process got one. A person's comes first."""
    _, interrupts, terminations = np.asarray(sums)
    if interrupts:
        return signal.SIGINT
    return signal.SIGTERM if terminations else None
