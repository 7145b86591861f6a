"""The training's loop over the step: what it adds to it."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from aifx.benchmarking.train.subject import Subject
from aifx.checkpoint import Checkpoints
from aifx.data.base import Batch
from aifx.data.order import prefetch
from aifx.programs.state import TrainState
from aifx.programs.train_step import STEP_METRICS
from aifx.training.events import EventDispatcher
from aifx.training.loop import Loop, StepFn
from aifx.training.meter import Meter
from aifx.training.observers import LogFile, MetricsFile
from aifx.training.records import Observer, Record, RunInfo, TrainResult
from aifx.training.run import run_info
from aifx.training.signals import StopSignals
from aifx.training.validation import Progress, Validator

EDGE = 3
"""Steps at either end of a loop that are no samples: the first fill what runs ahead, the last is waited for."""


class Looping:
    """The loop as `aifx train` runs it, its files in a run's folder, without validation."""

    def __init__(self, subject: Subject, observers: Sequence[Observer] = (), *, save_every: int = 0) -> None:
        """Args:
        observers: called in addition to metrics.jsonl and train.log.
        save_every: steps between checkpoints; 0 for none.
        """
        self._subject, self._observers, self._save_every = subject, observers, save_every
        self._read = 0

    def block(self, steps: int) -> list[Record]:
        """The records of so many steps on new batches, those at the edges left out. Raises NotFinite."""
        subject = self._subject
        records, steps = Records(), steps + 2 * EDGE
        subject.state, _ = self._run(subject.step_fn, subject.state, self._batches(steps), steps, records)
        return records.seen[EDGE:-EDGE]

    def whole_s(self, steps: int) -> float:
        """Seconds a step of a run of so many, from its first batch to its last checkpoint."""
        subject = self._subject
        subject.state, took_s = self._run(subject.step_fn, subject.state, self._batches(steps), steps, Records())
        return took_s / steps

    def alone_s(self, steps: int) -> tuple[float, float]:
        """Seconds a step where the device takes no time and batches are there, the host's own work; and of those, what
        the loop's thread computed for."""
        subject = self._subject
        ready = jax.block_until_ready(jax.numpy.ones(len(STEP_METRICS)))

        def nothing(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, jax.Array]:
            return state, ready

        def batches() -> Generator[Batch, None, None]:
            yield from itertools.cycle(subject.batches)

        before_s = time.thread_time()
        _, took_s = self._run(nothing, subject.state, batches(), steps, Records())
        return took_s / steps, (time.thread_time() - before_s) / steps

    def _batches(self, steps: int) -> Generator[Batch, None, None]:
        """New ones each time: what was read before is at hand."""
        first, self._read = self._read, self._read + steps
        return prefetch(self._subject.source, range(first, self._read), self._subject.rows)

    def _run(
        self, step_fn: StepFn, state: TrainState, batches: Generator[Batch, None, None], steps: int, records: Records
    ) -> tuple[TrainState, float]:
        """The state after it, and the seconds that it took."""
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
        dispatcher = EventDispatcher(run, [MetricsFile(run), LogFile(run), *self._observers, records])
        checkpoints: Any = Checkpoints(run.checkpoints, config.checkpoint) if self._save_every else Unsaved()
        loop = Loop(
            programs=programs,
            step_fn=step_fn,
            frozen=subject.frozen,
            meter=Meter(info, 0, None),
            checkpoints=checkpoints,
            validator=Validator(programs, lambda: False),
            dispatcher=dispatcher,
            stop=StopSignals(),
            progress=Progress(),
        )
        dispatcher.event("start", step=0)
        dispatcher.start(info)
        loop.meter.resume_clock()
        started = time.perf_counter()
        try:
            state = loop.run(state, batches, 0).state
            checkpoints.wait()
            return state, time.perf_counter() - started
        finally:
            dispatcher.end(None)


class Records:
    """Keeps the records of a run's steps."""

    def __init__(self) -> None:
        self.seen: list[Record] = []

    def start(self, info: RunInfo) -> None:
        pass

    def record(self, record: Record) -> None:
        self.seen.append(record)

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        pass

    def stop(self, result: TrainResult | None) -> None:
        pass


class Unsaved:
    """In place of checkpoints, which have a suite of their own."""

    def save(self, step: int, state: Any, **_: Any) -> None:
        pass

    def wait(self) -> None:
        pass
