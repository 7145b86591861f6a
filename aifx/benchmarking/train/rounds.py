"""The step, its parts and its loop, measured in turn.

In rounds over the whole launch, forwards and backwards: what slows the machine for a while affects all of them. By
how much one exceeds another is computed within a round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import WARM_UP_SHARE
from aifx.benchmarking.train.looping import Looping
from aifx.benchmarking.train.series import Series
from aifx.benchmarking.train.subject import Parts, Subject
from aifx.core.progress import report_progress
from aifx.machine.device_memory import peak_bytes, room
from aifx.machine.energy import Energy, Unreadable, open_energy
from aifx.training.hooks.guard import NotFinite

logger = logging.getLogger(__name__)

ROUNDS = 4
LEAST = 5
"""Samples of each in a round."""

PARTS_SHARE = 0.5
"""Share of the step's time that its parts get: comparisons over weeks are of the whole step."""

ALONE_BLOCKS = 7
ALONE_STEPS, ALONE_QUICK = 200, 50
"""Steps of a loop whose steps take the device no time."""


class Rounds:
    """Measures a subject that has begun, and yields its results, complete or not."""

    def __init__(self, bench: Bench, subject: Subject) -> None:
        self._bench, self._subject = bench, subject
        self._step = Series(subject.step)
        self._parts: dict[str, Series] = {}
        self._looping = Looping(subject)
        self._loop_s: list[float] = []
        self._wait_s: list[float] = []
        self._loop_medians: list[float | None] = []  # by round; None of one that was left out
        self._device_bytes: int | None = None
        self._steps = 0  # while energy was counted
        self._energy: Energy | None = None
        try:
            self._energy = open_energy(subject.devices)
        except Unreadable as error:
            logger.warning(f"{subject.info.unit} a joule: {error}")

    def run(self) -> None:
        """Warm all up, then measure round by round."""
        slice_s = self._bench.effort.slice_s
        self._step.warm(WARM_UP_SHARE * slice_s)
        self._device_bytes = peak_bytes(self._subject.devices)  # before there is anything else
        self._add_parts()
        for name, series in self._parts.items():
            logger.info(f"warming up: {name.replace('_', ' ')}")
            series.warm(WARM_UP_SHARE * PARTS_SHARE * slice_s)
        count = max(1, min(ROUNDS, int(slice_s / (LEAST * self._step.alone_s))))
        limit_s, counts = slice_s / count, (LEAST, self._bench.effort.most // count)
        blocks: list[Callable[[], object]] = [
            partial(self._loop_block, limit_s, *counts),
            partial(self._step_block, limit_s, *counts),
            *(partial(series.block, PARTS_SHARE * limit_s, *counts) for series in self._parts.values()),
        ]
        with report_progress("measuring in rounds", count * len(blocks), "parts") as progress:
            for number in range(count):
                logger.info(f"round {number + 1} of {count}")
                for block in blocks if number % 2 == 0 else reversed(blocks):
                    block()
                    progress.advance(1)

    def results(self) -> Iterator[Measured]:
        """As far as they came."""
        if self._step.seconds:
            yield self.step()
            yield self._told("dispatch", self._step.dispatch_s)
        for name, series in self._parts.items():
            if series.seconds:
                yield self._bench.measured(name, series.samples(series.seconds))
        if self._parts:
            pairs = zip(self._parts["forward_backward"].blocks, self._parts["forward"].medians, strict=False)
            if differences := [both_s - forward_s for block, forward_s in pairs for both_s in block]:
                yield self._told("backward", differences)
        if self._loop_s:
            rounds = zip(self._loop_medians, self._step.medians, strict=False)
            shares = [loop_s / step_s - 1 for loop_s, step_s in rounds if loop_s is not None]
            share = float(np.median(shares)) if shares else None
            more = self._subject.figures(float(np.median(self._loop_s)), overhead_share=share)
            yield self._told("loop", self._loop_s, **more)
            yield self._told("data_wait", self._wait_s)

    def step(self) -> Measured:
        subject, joules = self._subject, None
        if self._energy is not None:
            joules = self._energy.joules
            if joules is None:
                unmoved = f"its counters did not move in {self._energy.seconds:.1f} s"
                logger.warning(f"{subject.info.unit} a joule: {self._energy.failed or unmoved}")
        more = subject.figures(
            self._step.median_s,
            device_memory_bytes=self._device_bytes,
            step_energy_j=joules / self._steps if joules else None,
            units_per_joule=subject.units * self._steps / joules if joules else None,
        )
        return self._bench.measured("step", self._step.samples(self._step.seconds), **more)

    def overhead(self) -> Measured:
        """The loop's own work, and its share of a step. To be asked for once the step was measured."""
        logger.info("the loop alone")
        steps = ALONE_QUICK if self._bench.quick else ALONE_STEPS
        self._looping.alone_s(steps)  # imports, caches
        seconds, cpu_s = zip(*(self._looping.alone_s(steps) for _ in range(ALONE_BLOCKS)), strict=True)
        share = float(np.median(seconds)) / self._step.median_s
        figures = {"step_share": share, "thread_cpu_s": float(np.median(cpu_s))}
        return self._told("overhead", list(seconds), figures=figures)

    def _add_parts(self) -> None:
        logger.info("compiling forward, backward and optimizer")
        parts = Parts(self._subject)
        free, needed = room(self._subject.devices), parts.num_bytes
        if free is not None and needed is not None and needed > free:
            why = f"they need {needed:,} bytes beside the state, and {free:,} are free"
            logger.warning(f"forward, backward and optimizer are left out: {why}")
            return
        for part in (parts.forward, parts.forward_backward, parts.optimizer):
            self._parts[part.__name__] = Series(part)

    def _step_block(self, limit_s: float, least: int, most: int) -> None:
        with self._energy.span() if self._energy else nullcontext():
            steps = self._step.block(limit_s, least, most)
        self._steps += steps

    def _loop_block(self, limit_s: float, least: int, most: int) -> None:
        steps = min(max(least, round(limit_s / self._step.alone_s)), most)
        try:
            records = self._looping.block(steps)
        except NotFinite as error:
            logger.warning(f"the loop is left out of a round: the loss of its step {error.step} is not finite")
            self._subject.begin()
            self._loop_medians.append(None)
            return
        seconds = [record.step_time_s for record in records]
        self._loop_s += seconds
        self._wait_s += [record.data_wait_s for record in records]
        self._loop_medians.append(float(np.median(seconds)))

    def _told(self, thing: str, seconds: list[float], **more: Any) -> Measured:
        """A result of what was seen while something else was done."""
        return Measured(name=self._bench.name(thing), samples_s=seconds, **more)
