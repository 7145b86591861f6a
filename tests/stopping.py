"""Runs that stop where a test says."""

from __future__ import annotations

from aifx.training.observers import RunInfo
from aifx.training.records import Record, TrainResult
from aifx.training.signals import StopSignals


class StopAt:
    """An observer that asks the run to stop at a step."""

    def __init__(self, step: int) -> None:
        self.step, self.signals = step, StopSignals()

    def start(self, info: RunInfo) -> None: ...

    def record(self, record: Record) -> None:
        if record.step == self.step:
            self.signals.requested = 15

    def event(self, name: str, fields: object) -> None: ...

    def stop(self, result: TrainResult | None) -> None: ...
