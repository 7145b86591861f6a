"""Copies between host and device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from aifx.benchmarking import units
from aifx.benchmarking.hardware.faults import WrongResult
from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import sample
from aifx.machine.microbenchmarks import Transfer, name_of

logger = logging.getLogger(__name__)

SIZES = {"cpu": (1 << 16, 1 << 20, 1 << 26), "accelerator": (1 << 16, 1 << 20, 1 << 24, 1 << 28)}


def measure(bench: Bench, device: Any) -> Iterator[Measured]:
    """`copy` by direction and bytes, of page-locked memory where JAX has it."""
    is_cpu = device.platform == "cpu"
    if is_cpu:
        logger.warning("copies: host and device are one memory here; they show what JAX's copying costs, not a link")
    # The largest first: the ceilings of a bench that is ended meanwhile are of the largest that it came to.
    for num_bytes in SIZES["cpu" if is_cpu else "accelerator"][::-1][: 1 if bench.quick else None]:
        logger.info(f"copies of {units.size(num_bytes)}")
        transfer = Transfer(device, num_bytes)
        if not (is_cpu or transfer.is_pinned):
            logger.warning("copies: JAX offers no page-locked memory here; they are of ordinary memory")
        memory = "pinned" if transfer.is_pinned else "pageable"
        for direction, run in (("to_device", transfer.to_device), ("to_host", transfer.to_host)):
            params = {"direction": direction, "num_bytes": num_bytes, "memory": memory}
            yield bench.measured("copy", sample(run, bench.effort), params=params, num_bytes=num_bytes)
        if not transfer.is_right():
            raise WrongResult(name_of(device), f"copies of {num_bytes} bytes there and back")
