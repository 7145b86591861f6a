"""The measured programs: the step that `aifx train` would run, and its parts as programs of their own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from aifx.benchmarking.suites import Bench
from aifx.config import Config
from aifx.machine.device_memory import extra_bytes, program_bytes
from aifx.tasks.base import dataset_of, training_source
from aifx.training.run import run_info

NUM_BATCHES = 8
"""Batches that are taken in turn: as many as no cache of a CPU keeps with the model."""

STILL = 1e-6
"""Factor of the learning rate: the same gradients are applied over and over, and would lead away from any model."""


class Subject:
    """A configuration's step, compiled.

    Attributes:
        trace_s, compile_s: from Python to XLA's program, and from there to the device's.
        batches: on the host.
        units: tokens or images of a batch, the mean.
        program_bytes: of arguments, results and temporaries of the step; None if XLA does not say.
    """

    def __init__(self, bench: Bench, config: Config, folder: Path) -> None:
        """Compile the step of a run in `folder`. Raises ConfigError, DataError."""
        self.config = config
        self.run, self.programs = bench.build(config, folder)
        task = self.programs.task
        self.rows = slice(0, config.train.global_batch_size)
        self.source = training_source(task, config)
        self.batches = [self.source.read(number, self.rows) for number in range(NUM_BATCHES)]
        dataset, unit = dataset_of(task), task.objective.unit
        self.units = float(np.mean([dataset.counts(batch)[unit] for batch in self.batches]))
        self.info = run_info(self.run, self.programs)
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
        self._placed = [self.programs.place(batch) for batch in self.batches]
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

    def figures(self, step_s: float, **more: float | None) -> dict[str, Any]:
        """FLOPs, roofline and figures of a result whose median is `step_s`."""
        flops, peak, ceiling = self.info.flops_per_step, self.info.peak, self.info.ceiling
        return {
            "flops": flops,
            "bound_s": flops / peak.flops if peak else None,
            "unit": self.info.unit,
            "figures": {
                "units_per_s": self.units / step_s,
                "mfu": flops / step_s / peak.flops if peak else None,
                "ceiling_fraction": flops / step_s / ceiling.flops if ceiling else None,
                "model_flops": flops,
                "peak_memory_bytes": self.program_bytes,
                **more,
            },
        }


class Parts:
    """Forward, forward with backward, and the update, each a program. They begin from their subject's state."""

    def __init__(self, subject: Subject) -> None:
        config, section = subject.config, subject.config.optimizer
        still = {"learning_rate": section.learning_rate * STILL}
        if section.adam_learning_rate is not None:
            still["adam_learning_rate"] = section.adam_learning_rate * STILL
        config = replace(config, optimizer=section.model_copy(update=still))
        parts = replace(subject.programs, config=config).parts
        self._subject = subject
        self._gradients: Any = None
        self._forward, self._forward_backward, self._update = (
            parts[name].lower().compile() for name in ("forward", "forward_backward", "update")
        )

    @property
    def num_bytes(self) -> int | None:
        """Bytes that the parts need in addition to the state and the batches; None if XLA does not say."""
        own = [extra_bytes(program) for program in (self._forward_backward, self._update)]
        known = [count for count in own if count is not None]
        return 2 * max(known) if known else None  # of one call, and of the next one that is dispatched already

    def forward(self) -> jax.Array:
        loss: jax.Array = self._forward(self._subject.state, self._subject.frozen, self._subject.next_batch())
        return loss

    def forward_backward(self) -> jax.Array:
        subject = self._subject
        loss: jax.Array
        loss, self._gradients = self._forward_backward(subject.state, subject.frozen, subject.next_batch())
        return loss

    def optimizer(self) -> jax.Array:
        """Clipping and update, with the gradients that were formed last."""
        if self._gradients is None:
            self.forward_backward()
        norm: jax.Array
        self._subject.state, norm = self._update(self._subject.state, self._gradients)
        return norm


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
