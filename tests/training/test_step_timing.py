"""Which process of a job holds up the others."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest

from aifx.parallel.group import Group
from aifx.training.hooks.step_timing import OwnTime, StepTiming, find_slowest
from aifx.training.records import Record


def times(*seconds: float) -> list[OwnTime]:
    return [OwnTime(number, f"host-{number}", own_s) for number, own_s in enumerate(seconds)]


def test_who_is_slow() -> None:
    assert find_slowest(times(0.1, 0.1, 0.1), 1.0) is None
    slowest = find_slowest(times(0.1, 0.5, 0.12), 1.0)
    assert slowest is not None
    assert slowest.host == "host-1"
    assert find_slowest(times(0.001, 0.01), 1.0) is None, "a hundredth of a step is no matter"
    assert find_slowest(times(0.6, 1.0), 1.0) is None, "not twice as long"
    assert find_slowest(times(0.0, 0.9), 1.0) is not None


class Pair(Group):
    """Process 0 of two, the other of which takes so long."""

    size = 2
    other_s = 0.0

    def gather(self, value: Any) -> list[Any]:
        self.own_s = value[2]
        return [value, [1, "far", self.other_s]]


class Dispatcher:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.warnings: list[str] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_it_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    group, dispatcher, now = Pair(), Dispatcher(), [0.0]
    timing = StepTiming(group, dispatcher)  # type: ignore[arg-type]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def take(step: int, state: Any, batch: Any) -> Any:
        now[0] += 0.04
        return state, np.zeros(3)

    take_step = timing.around_step(take)

    def pause(step: int, other_s: float) -> None:
        group.other_s = other_s
        record = Record(step, 1.0, 1.0, 0.01, "rows", 8, 8.0, 1.0, None, None, 0.06, 0.0)
        for _ in range(3 if step else 0):
            take_step(step, None, {})  # type: ignore[arg-type]
            timing.after_step(record, {})
        timing.at_pause(None, record)  # type: ignore[arg-type]

    for step, other_s in ((0, 0.9), (5, 0.1), (10, 0.9), (15, 0.9)):
        pause(step, other_s)
    assert group.own_s == pytest.approx(0.1), "with the wait for the batch"
    ((name, fields),) = dispatcher.events
    assert (name, fields["step"], fields["process"], fields["host"]) == ("slow_process", 10, 1, "far")
    (warning,) = dispatcher.warnings
    assert re.search(r"process 1 on far.*0\.9 s", warning)
    pause(20, 0.1)
    pause(25, 0.9)
    assert len(dispatcher.events) == 2, "again after it was not"
