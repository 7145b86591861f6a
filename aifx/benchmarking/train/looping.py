"""The training's loop over the step: what it adds to it."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import jax

from aifx.benchmarking.train.subject import Subject
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.core.project import RunDirectory
from aifx.core.stop_signals import StopSignals
from aifx.data.base import Batch
from aifx.data.order import prefetch
from aifx.programs.state import TrainState
from aifx.programs.train_step import STEP_METRICS
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.hooks.run_files import LogFile, MetricsFile
from aifx.training.loop import StepFn
from aifx.training.records import Record
from aifx.training.restore import InitialState
from aifx.training.run import assemble, run_info

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
