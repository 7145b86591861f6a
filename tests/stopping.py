"""Runs that stop where a test says."""

from __future__ import annotations

from aifx.core.stop_signals import StopSignals
from aifx.training.hook import Hook
from aifx.training.records import Record


class StopAt(Hook):
    """A hook that asks the run to stop at a step."""

    def __init__(self, step: int) -> None:
        self.step, self.signals = step, StopSignals()

    def on_record(self, record: Record) -> None:
        if record.step == self.step:
            self.signals.requested = 15
