"""Which process of a job holds up the others."""

from __future__ import annotations

import re
from typing import Any

from aifx.parallel.group import Group
from aifx.training.pace import OwnTime, Pace, find_slowest


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
        return [value, [1, "far", self.other_s]]


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.warnings: list[str] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_it_is_named_once() -> None:
    group, heard = Pair(), Heard()
    pace = Pace(group, heard)  # type: ignore[arg-type]

    def pause(step: int, other_s: float) -> None:
        group.other_s = other_s
        for _ in range(3):
            pace.started(0.1)
            pace.ended(1.0)
        pace.compare(step)

    pace.compare(0)  # before any step
    for step, other_s in ((5, 0.1), (10, 0.9), (15, 0.9)):
        pause(step, other_s)
    ((name, fields),) = heard.events
    assert (name, fields["step"], fields["process"], fields["host"]) == ("slow_process", 10, 1, "far")
    (warning,) = heard.warnings
    assert re.search(r"process 1 on far.*0\.9 s", warning)
    pause(20, 0.1)
    pause(25, 0.9)
    assert len(heard.events) == 2, "again after it was not"
