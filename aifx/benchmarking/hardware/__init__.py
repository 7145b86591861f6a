"""What this machine's silicon reaches."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import jax

from aifx.benchmarking.hardware import collectives, copies, dispatch, memory, products
from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench

logger = logging.getLogger(__name__)


def measure(bench: Bench) -> Iterator[Measured]:
    """One device alone, the first, then all together. Raises WrongResult."""
    devices = jax.local_devices()
    if len(devices) > 1:
        logger.warning(f"products, memory and copies were measured on the first of {len(devices)} devices")
    yield from products.measure(bench, devices[0])
    yield from memory.measure(bench, devices[0])
    yield from copies.measure(bench, devices[0])
    yield from collectives.measure(bench, devices)
    yield from dispatch.measure(bench)
