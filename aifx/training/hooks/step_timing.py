"""Which process of a job holds up the others: the time that each takes itself for a step."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from aifx.data.base import Batch
from aifx.parallel.group import Group
from aifx.programs.state import TrainState
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook, TakeStep
from aifx.training.records import Record

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


class StepTiming(Hook):
    """Compares the processes of a job when all of them pause.

    A step ends in all processes at the same time, because its sums need all of them. So they differ only in the
    time until they have started it.
    """

    all_processes = True

    def __init__(self, group: Group, dispatcher: EventDispatcher) -> None:
        self._group = group
        self._dispatcher = dispatcher
        self._own_s: list[float] = []  # of each step since the last pause, without the wait for its batch
        self._waits_s: list[float] = []
        self._step_s: list[float] = []
        self._named: int | None = None

    def around_step(self, take_step: TakeStep) -> TakeStep:
        def timed(step: int, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
            started = time.perf_counter()
            taken = take_step(step, state, batch)
            self._own_s.append(time.perf_counter() - started)
            return taken

        return timed

    def after_step(self, record: Record, batch: Batch) -> None:
        self._waits_s.append(record.data_wait_s)
        self._step_s.append(record.step_time_s)

    def at_pause(self, state: TrainState, record: Record) -> None:
        """Name the slowest process, once until it is another one."""
        own_s, waits_s, step_s = self._own_s, self._waits_s, self._step_s
        self._own_s, self._waits_s, self._step_s = [], [], []
        if self._group.size == 1 or not own_s or not step_s:
            return
        mine = OwnTime(self._group.index, socket.gethostname(), statistics.fmean(own_s) + statistics.fmean(waits_s))
        found = [OwnTime(*times) for times in self._group.gather([mine.process, mine.host, mine.seconds])]
        if not self._group.is_first:
            return
        slowest = find_slowest(found, statistics.fmean(step_s))
        if slowest is not None and slowest.process != self._named:
            others_s = statistics.median(one.seconds for one in found if one is not slowest)
            self._dispatcher.event(
                "slow_process",
                step=record.step,
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
