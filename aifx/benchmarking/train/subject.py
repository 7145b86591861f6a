"""What is measured: the step that `aifx train` would run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from aifx.benchmarking.suites import Bench
from aifx.config import Config
from aifx.core.project import RunDirectory
from aifx.kernels.choice import run_choices
from aifx.machine.device_memory import program_bytes
from aifx.parallel.layout import local_layout
from aifx.programs.build import build
from aifx.tasks.base import dataset_of, training_source
from aifx.tasks.registry import open_task
from aifx.training.run import run_info

NUM_BATCHES = 8
"""Batches that are taken in turn: as many as no cache of a CPU keeps with the model."""


class Subject:
    """A configuration's step, compiled.

    Attributes:
        trace_s, compile_s: from Python to XLA's program, and from there to the device's.
        info: what a run knows of its steps: unit, model FLOPs per step, peak.
        batches: on the host.
        units: tokens or images of a batch, the mean.
        program_bytes: of arguments, results and temporaries of the step; None if XLA does not say.
    """

    def __init__(self, bench: Bench, config: Config, folder: Path) -> None:
        """Args:
        folder: of the run that this would be.

        Raises ConfigError, DataError.
        """
        layout = local_layout(config.train.devices, config.mesh)
        layout.check_batch(config.train.global_batch_size, config.train.gradient_accumulation)
        run = RunDirectory(folder)
        run.assets.mkdir(parents=True, exist_ok=True)
        task = open_task(config, bench.project, run.assets)
        self.config, self.run = config, run
        self.programs = build(config, task, layout, kernels=run_choices(run, config, layout=layout))
        self.rows = slice(0, config.train.global_batch_size)
        self.source = training_source(task, config)
        self.batches = [self.source.read(number, self.rows) for number in range(NUM_BATCHES)]
        dataset, unit = dataset_of(task), task.objective.unit
        self.units = float(np.mean([dataset.counts(batch)[unit] for batch in self.batches]))
        self.info = run_info(run, self.programs)
        started = time.perf_counter()
        lowered = self.programs.train_step.lower()
        traced = time.perf_counter()
        self.step_fn = lowered.compile()
        self.trace_s, self.compile_s = traced - started, time.perf_counter() - traced
        self.program_bytes = program_bytes(self.step_fn)

    @property
    def devices(self) -> list[Any]:
        return self.programs.layout.devices

    def begin(self) -> None:
        """State and batches on the devices."""
        self.state, self.frozen = self.programs.init()
        self._placed = [self.programs.layout.place(batch) for batch in self.batches]
        self._turn = itertools.cycle(self._placed)

    def end(self) -> None:
        """Nothing of it on the devices any more."""
        del self.state, self.frozen, self._placed, self._turn

    def next_batch(self) -> dict[str, jax.Array]:
        return next(self._turn)

    def step(self) -> jax.Array:
        numbers: jax.Array
        self.state, numbers = self.step_fn(self.state, self.frozen, self.next_batch())
        return numbers


@contextmanager
def uncached() -> Iterator[None]:
    """Inside, nothing is taken from JAX's persistent compilation cache, and nothing is put there."""
    before = jax.config.jax_enable_compilation_cache
    reset_cache()  # JAX asks once whether there is one
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()
