"""Which process of a job holds up the others: the time that each takes itself for a step."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from aifx.parallel.group import Group
from aifx.training.observers import EventDispatcher

SLOWER = 2.0
"""A process is slow if it takes so many times the median of the others ..."""

SHARE = 0.2
"""... and the difference is this share of a step."""


@dataclass(frozen=True)
class OwnTime:
    """Seconds per step that a process takes itself: it reads the batch, places it and starts the step."""

    process: int
    host: str
    seconds: float


class Pace:
    """Compares the processes of a job when all of them pause.

    A step ends in all processes at the same time, because its sums need all of them. So they differ only in the
    time until they have started it.
    """

    def __init__(self, group: Group, dispatcher: EventDispatcher) -> None:
        self._group = group
        self._dispatcher = dispatcher
        self._own_s: list[float] = []
        self._step_s: list[float] = []
        self._named: int | None = None

    def started(self, seconds: float) -> None:
        """This process took so long to start a step."""
        self._own_s.append(seconds)

    def ended(self, seconds: float) -> None:
        """A step took so long in all."""
        self._step_s.append(seconds)

    def compare(self, step: int) -> None:
        """Name the slowest process, once until it is another one. All processes call it for the same steps."""
        own_s, self._own_s, step_s, self._step_s = self._own_s, [], self._step_s, []
        if self._group.size == 1 or not own_s or not step_s:
            return
        mine = OwnTime(self._group.index, socket.gethostname(), statistics.fmean(own_s))
        found = [OwnTime(*times) for times in self._group.gather([mine.process, mine.host, mine.seconds])]
        if not self._group.is_first:
            return
        slowest = find_slowest(found, statistics.fmean(step_s))
        if slowest is not None and slowest.process != self._named:
            others_s = statistics.median(one.seconds for one in found if one is not slowest)
            self._dispatcher.event(
                "slow_process",
                step=step,
                process=slowest.process,
                host=slowest.host,
                own_s=slowest.seconds,
                others_s=others_s,
            )
            times = f"{slowest.seconds:.3g} s until it has started a step, and the others {others_s:.3g} s"
            self._dispatcher.warn(f"process {slowest.process} on {slowest.host} holds up the others: {times}")
        self._named = None if slowest is None else slowest.process


def find_slowest(found: Sequence[OwnTime], step_s: float) -> OwnTime | None:
    """The process that takes much longer than the others for its own part of a step of `step_s`; None if none does."""
    slowest = max(found, key=lambda one: one.seconds)
    others_s = statistics.median(one.seconds for one in found if one is not slowest)
    is_slow = slowest.seconds > SLOWER * others_s and slowest.seconds - others_s > SHARE * step_s
    return slowest if is_slow else None
