"""What a call costs in addition to its work."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import sample

logger = logging.getLogger(__name__)

CHAIN = 64
"""Calls that each wait for the one before on the device, not on the host."""


def measure(bench: Bench) -> Iterator[Measured]:
    """`dispatch`: from the call of a compiled program to its end, waited for. `launch`: one of a chain of programs that
    follow each other without the host's waiting, which is what a training step pays."""
    logger.info("dispatch")
    step = jax.jit(lambda x: x + 1)
    x = jax.block_until_ready(step(jnp.zeros(())))

    def chain() -> jax.Array:
        y: jax.Array = x
        for _ in range(CHAIN):
            y = step(y)
        return y

    # Each waited for: of many calls in a row, which a sample of something so short is, it would be the last alone.
    yield bench.measured("dispatch", sample(lambda: jax.block_until_ready(step(x)), bench.effort))
    timed = sample(chain, bench.effort)
    timed.seconds[:] = [seconds / CHAIN for seconds in timed.seconds]
    yield bench.measured("launch", timed)
