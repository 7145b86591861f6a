"""Collectives among all devices of this process, by kind and size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from aifx.benchmarking import units
from aifx.benchmarking.hardware.faults import WrongResult
from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import sample
from aifx.machine.device_memory import is_out_of_memory
from aifx.machine.microbenchmarks import KINDS, Collective

logger = logging.getLogger(__name__)

SIZES = {"cpu": (1 << 16, 1 << 20, 1 << 24), "accelerator": (1 << 16, 1 << 20, 1 << 24, 1 << 28, 1 << 30)}
"""Bytes of a device's buffer, counted as nccl-tests does."""


def measure(bench: Bench, devices: list[Any]) -> Iterator[Measured]:
    """`collective` by kind and bytes, `bus_bytes_per_s` being the bus bandwidth of nccl-tests."""
    if len(devices) < 2:
        logger.warning("left out: collectives need two devices or more")
        return
    sizes = SIZES["cpu" if devices[0].platform == "cpu" else "accelerator"]
    for kind in KINDS:
        for size in sizes[1:2] if bench.quick else sizes:
            logger.info(f"{kind} of {units.size(size)} among {len(devices)} devices")
            try:
                collective = Collective(devices, kind, size)
                if names := collective.wrong():
                    raise WrongResult(", ".join(names), kind)
                timed = sample(collective, bench.effort)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                logger.warning(f"left out: {kind} of {units.size(size)}, for which there is no room")
                continue
            seconds = sorted(timed.seconds)[len(timed.seconds) // 2]
            params = {"kind": kind, "num_bytes": collective.size}
            figures = {"bus_bytes_per_s": collective.bus_bytes / seconds}
            yield bench.measured("collective", timed, params=params, num_bytes=collective.size, figures=figures)
