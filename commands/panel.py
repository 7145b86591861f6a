"""What a person sees while a run goes: a live panel at a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from aifx.commands.terminal import Output

if TYPE_CHECKING:

    from aifx.train.records import Record, RunInfo, TrainResult

REFRESH_PER_SECOND = 4
CURVE_POINTS = 2000


class Progress(Protocol):
    """An observer of a run that also shows what comes before it."""

    def say(self, text: str) -> None: ...

    def start(self, info: RunInfo) -> None: ...

    def record(self, record: Record) -> None: ...

    def event(self, name: str, fields: Mapping[str, Any]) -> None: ...

    def stop(self, result: TrainResult | None) -> None: ...

    def abandon(self) -> None:
        """The process ends where it stands: leave the terminal usable."""
        ...


def make_progress(out: Output) -> Progress:
    """A live panel where stderr is a terminal that takes one, plain lines elsewhere."""
    return Lines(out)


class Lines:
    """Plain lines on stderr: the first steps, then one every ten seconds, validations, checkpoints and the end."""

    FIRST = 3
    EVERY_S = 10.0

    def __init__(self, out: Output) -> None:
        self._out = out
        self._last = 0.0
        self._first_step = 0

    def say(self, text: str) -> None:
        self._out.say(text)

    def start(self, info: RunInfo) -> None:
        self._first_step = info.first_step
        self._num_steps = info.num_steps
        at = f", from step {info.first_step}" if info.first_step else ""
        self.say(f"run {info.run.name}: {info.num_parameters:,} parameters, {info.num_steps} steps{at}")
        self.say(f"{info.devices}, {info.dtype} computation")
        self.say(info.mfu_formula)

    def record(self, record: Record) -> None:
        now = time.monotonic()
        is_early = record.step - self._first_step <= self.FIRST
        is_due = now - self._last >= self.EVERY_S
        if is_early or is_due or record.validation is not None or record.step == self._num_steps:
            from aifx.train.observers import line_of

            self._last = now
            self.say(line_of(record))

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name == "checkpoint":
            self.say(f"checkpoint of step {fields['step']} saved")

    def stop(self, result: TrainResult | None) -> None:
        pass

    def abandon(self) -> None:
        pass
