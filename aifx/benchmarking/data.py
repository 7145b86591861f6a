"""Suite "data": the rate of the project's batches, and whether a step would wait for them."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from statistics import median

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import Samples, sample
from aifx.data.order import prefetch
from aifx.tasks.base import dataset_of, training_source

logger = logging.getLogger(__name__)

SCATTER = 7919
"""A prime: steps at this distance share no page of the store."""


def measure(bench: Bench) -> Iterator[Measured]:
    """`read`: a batch of the next step made by one thread. `scattered`: of distant steps. `prefetch`: what
    the loop waits for a batch when it takes them as fast as they come. `place`: moving one to the devices."""
    with bench.scratch() as folder:
        _, programs = bench.build(bench.config, folder / "bench")
        source, rows = training_source(programs.task, bench.config), slice(0, bench.config.train.global_batch_size)
        first, unit = source.read(0, rows), programs.objective.unit
        num_bytes = sum(array.nbytes for array in first.values())
        num_units = dataset_of(programs.task).counts(first)[unit]

        def result(thing: str, samples: Samples) -> Measured:
            figures = {"units_per_s": num_units / max(median(samples.seconds), 1e-9)}
            params = {"rows": rows.stop}
            return bench.measured(thing, samples, params=params, num_bytes=num_bytes, unit=unit, figures=figures)

        def read(steps: Iterator[int]) -> Samples:
            return sample(lambda: source.read(next(steps), rows), bench.effort)

        logger.info("data: reading")
        yield result("read", read(itertools.count()))
        yield result("scattered", read(itertools.count(SCATTER, SCATTER)))
        logger.info("data: prefetching")
        with closing(prefetch(source, range(10**9), rows)) as batches:
            started = time.perf_counter()
            next(batches)  # the thread's start is within
            first_s = time.perf_counter() - started
            samples = sample(lambda: next(batches), bench.effort)
        yield result("prefetch", replace(samples, first_s=first_s))
        yield result("place", sample(lambda: programs.place(first), bench.effort))
