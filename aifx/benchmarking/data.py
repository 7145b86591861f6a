"""How fast the project's batches are made, and whether a step would wait for them."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import closing

from aifx.benchmarking.results import Measured
from aifx.benchmarking.setup import Prepared, prepared
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import Samples, sample
from aifx.data.base import Batch
from aifx.tasks.base import dataset_of, training_source

logger = logging.getLogger(__name__)

SCATTER = 7919
"""A prime: steps at this distance share no page of the store."""


def measure(bench: Bench) -> Iterator[Measured]:
    """`read`: a batch of the next step made by one thread. `scattered`: of distant steps. `prefetch`: what
    the loop waits for a batch when it takes them as fast as they come. `place`: moving one to the devices."""
    with prepared(bench) as ready:
        source = training_source(ready.programs.task, ready.config)
        first = source.read(0, ready.rows)
        size, units = (
            sum(array.nbytes for array in first.values()),
            dataset_of(ready.programs.task).counts(first)[ready.programs.objective.unit],
        )
        steps = itertools.count()

        def result(thing: str, samples: Samples) -> Measured:
            per_s = units / max(sorted(samples.seconds)[len(samples.seconds) // 2], 1e-9)
            figures: dict[str, float | None] = {"units_per_s": per_s}
            params, unit = {"rows": ready.rows.stop}, ready.programs.objective.unit
            return bench.measured(thing, samples, params=params, num_bytes=size, unit=unit, figures=figures)

        logger.info("data: reading")
        yield result(
            "read", sample(lambda step: source.read(step, ready.rows), bench.effort, make=lambda: (next(steps),))
        )
        far = itertools.count(1)

        def scattered() -> tuple[int]:
            return (next(far) * SCATTER,)

        yield result("scattered", sample(lambda step: source.read(step, ready.rows), bench.effort, make=scattered))
        logger.info("data: prefetching")
        yield result("prefetch", _prefetched(bench, ready))
        yield result("place", _placed(bench, ready, first))


def _prefetched(bench: Bench, ready: Prepared) -> Samples:
    """Waits for one batch after another of the thread that reads ahead."""
    from aifx.data.order import prefetch

    with closing(prefetch(training_source(ready.programs.task, ready.config), range(10**9), ready.rows)) as batches:
        started = time.perf_counter()
        next(batches)  # the thread's start is within
        first_s = time.perf_counter() - started
        timed = sample(lambda: next(batches), bench.effort)
    return Samples(timed.seconds, timed.calls, first_s, timed.warm_up, timed.notes)


def _placed(bench: Bench, ready: Prepared, batch: Batch) -> Samples:

    return sample(lambda: ready.programs.layout.place(batch), bench.effort)
