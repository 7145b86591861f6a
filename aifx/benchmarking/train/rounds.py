"""The step, its parts and its loop, measured in turn.

In rounds over the whole launch, forwards and backwards: what slows the machine for a while affects all of them. By
how much one exceeds another is computed within a round.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import WARM_UP_SHARE, Timed
from aifx.benchmarking.train.subject import Parts, Subject
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core.progress import report_progress
from aifx.core.project import RunDirectory
from aifx.core.stop_signals import StopSignals
from aifx.data.base import Batch
from aifx.data.order import prefetch
from aifx.machine.device_memory import peak_bytes, room
from aifx.machine.energy import Energy, Unreadable, open_energy
from aifx.programs.state import TrainState
from aifx.programs.train_step import STEP_METRICS
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.hooks.guard import NotFinite
from aifx.training.hooks.run_files import LogFile, MetricsFile
from aifx.training.loop import StepFn
from aifx.training.records import Record
from aifx.training.restore import InitialState
from aifx.training.run import assemble, run_info

FILL = 2
"""Calls of a block before its first sample: the caches are its own again, and one call is ahead."""


class Series(Timed):
    """One program that is called over and over, in blocks, so that several can be measured in turn. `advance` makes a
    call, and returns what can be waited for.

    A sample is the time from one call's end to the next one's: what the host does meanwhile is not in it, unless the
    device waits for it.

    Attributes:
        blocks: the samples of each.
        dispatch_s: what the host was held by a call, for each sample.
        alone_s: a call that is waited for, once warm.
    """

    def __init__(self, advance: Callable[[], Any]) -> None:
        super().__init__(advance)
        self.dispatch_s: list[float] = []
        self.blocks: list[list[float]] = []

    def warm(self, limit_s: float) -> None:
        super().warm(limit_s)
        self.alone_s = self.time()

    def block(self, limit_s: float, least: int, most: int = 2000) -> int:
        """Sample for so long, so many times at the least and at the most. Returns the calls that it took."""
        pending = self._run()
        for _ in range(FILL - 1):
            following = self._run()
            jax.block_until_ready(pending)
            pending = following
        taken: list[float] = []
        mark = time.perf_counter()
        until = mark + limit_s
        while len(taken) < least or (mark < until and len(taken) < most):
            held_s = 0.0
            for _ in range(self.calls):
                started = time.perf_counter()
                following = self._run()
                held_s += time.perf_counter() - started
                jax.block_until_ready(pending)
                pending = following
            now = time.perf_counter()
            taken.append((now - mark) / self.calls)
            self.dispatch_s.append(held_s / self.calls)
            mark = now
        jax.block_until_ready(pending)
        self.blocks.append(taken)
        return FILL + len(taken) * self.calls

    @property
    def seconds(self) -> list[float]:
        """All samples."""
        return [seconds for block in self.blocks for seconds in block]

    @property
    def medians(self) -> list[float]:
        """The median of each block."""
        return [float(np.median(block)) for block in self.blocks]

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))


EDGE = 3
"""Steps at either end of a loop that are no samples: the first fill what runs ahead, the last is waited for."""


class Looping:
    """The loop as `aifx train` runs it, its files in a run's folder, without validation; with checkpoints only if
    `save_every` is not 0. `hooks` are called in addition to its own."""

    def __init__(self, subject: Subject, hooks: Sequence[Hook] = (), *, save_every: int = 0) -> None:
        self._subject, self._hooks, self._save_every = subject, hooks, save_every
        self._read = 0

    def block(self, steps: int) -> list[Record]:
        """The records of so many steps on new batches, those at the edges left out. Raises NotFinite."""
        return self._train(steps + 2 * EDGE)[1][EDGE:-EDGE]

    def whole_s(self, steps: int) -> float:
        """Seconds a step of a run of so many, from its first batch to its last checkpoint."""
        return self._train(steps)[0] / steps

    def alone_s(self, steps: int) -> tuple[float, float]:
        """Seconds a step where the device takes no time and batches are there, the host's own work; and of those, what
        the loop's thread computed for."""
        ready = jax.block_until_ready(jax.numpy.ones(len(STEP_METRICS)))

        def nothing(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, jax.Array]:
            return state, ready

        batches = (batch for batch in itertools.cycle(self._subject.batches))
        before_s = time.thread_time()
        _, took_s, _ = self._run(nothing, batches, steps)
        return took_s / steps, (time.thread_time() - before_s) / steps

    def _train(self, steps: int) -> tuple[float, list[Record]]:
        """The seconds and records of so many steps, on new batches each time: what was read before is at hand."""
        subject, first = self._subject, self._read
        self._read += steps
        batches = prefetch(subject.source, range(first, self._read), subject.rows)
        subject.state, took_s, records = self._run(subject.step_fn, batches, steps)
        return took_s, records

    def _run(
        self, step_fn: StepFn, batches: Generator[Batch, None, None], steps: int
    ) -> tuple[TrainState, float, list[Record]]:
        """The state after it, the seconds that it took, and its records."""
        subject = self._subject
        config = replace(
            subject.config,
            train=subject.config.train.model_copy(update={"num_steps": steps, "validate_every": 0}),
            checkpoint=subject.config.checkpoint.model_copy(update={"every": self._save_every}),
        )
        run = subject.run
        for path in (run.metrics, run.events):
            path.unlink(missing_ok=True)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        programs = replace(subject.programs, config=config)
        info = run_info(run, programs)
        log = RecordingLog(run)
        dispatcher = EventDispatcher(run, [MetricsFile(run), log, *self._hooks])
        checkpoints: Any = Checkpoints(run.checkpoints, config.checkpoint) if self._save_every else Unsaved()
        initial = InitialState(0, subject.state, subject.frozen)
        loop = assemble(info, programs, step_fn, initial, checkpoints, dispatcher, StopSignals()).loop
        dispatcher.event("start", step=0)
        dispatcher.start(info)
        loop.meter.resume_clock()
        started = time.perf_counter()
        try:
            state = loop.run(subject.state, batches, 0).state
            checkpoints.wait()
            return state, time.perf_counter() - started, log.records
        finally:
            dispatcher.end(None)


class RecordingLog(LogFile):
    """train.log, and the records that are written to it."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(run)
        self.records: list[Record] = []

    def on_record(self, record: Record) -> None:
        super().on_record(record)
        self.records.append(record)


class Unsaved:
    """In place of checkpoints, which have a suite of their own."""

    local = None

    def save(self, step: int, state: Any, **_: Any) -> None:
        pass

    def wait(self) -> None:
        pass


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
