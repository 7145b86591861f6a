"""Bandwidth of the memory and of every cache on the way to it: STREAM's operations by size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from aifx.benchmarking import units
from aifx.benchmarking.hardware.faults import WrongResult
from aifx.benchmarking.results import Measured, Param
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import sample
from aifx.benchmarking.views import TIMES_CACHE
from aifx.machine.catalogue import find_accelerator
from aifx.machine.device_memory import BEYOND, cache_bytes, is_out_of_memory, room
from aifx.machine.microbenchmarks import ARRAYS, Stream, name_of

logger = logging.getLogger(__name__)

SMALLEST = {"cpu": 1 << 14, "accelerator": 1 << 20}
"""Bytes of all arrays: half of a first-level cache; on an accelerator what gives each of its cores a few thousand."""

LEAST_LARGEST = {"cpu": 1 << 27, "accelerator": 1 << 31}
STEP = 4

CALL_BYTES = {"cpu": 1 << 28, "accelerator": 1 << 32}
"""That a call moves at the least: small arrays are gone through often, since a call costs microseconds."""


def measure(bench: Bench, device: Any) -> Iterator[Measured]:
    """`memory` by op and by the bytes that its arrays take together."""
    for op in ("triad",) if bench.quick else ARRAYS:
        for num_bytes in sizes(device.platform, quick=bench.quick):
            logger.info(f"memory: {op} of {units.size(num_bytes)}")
            found, free = None, room([device])
            if free is None or free >= num_bytes:
                try:
                    found = _measured(bench, device, op, num_bytes)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
            if found is not None:
                yield found
            else:
                logger.warning(f"left out: {op} of {units.size(num_bytes)} in memory, which has no room for it")


def _measured(bench: Bench, device: Any, op: str, num_bytes: int) -> Measured:
    stream = Stream(device, op, num_bytes, CALL_BYTES["cpu" if device.platform == "cpu" else "accelerator"])
    timed = sample(stream, bench.effort)
    if count := stream.num_wrong():
        raise WrongResult(name_of(device), f"{op} in memory, {count} elements")
    timed.seconds[:] = [seconds / stream.rounds for seconds in timed.seconds]
    moved = stream.num_bytes / stream.rounds
    times = num_bytes / cache_bytes(device.platform)
    entry, bound_s = find_accelerator(device.device_kind), None
    if entry and times >= BEYOND:  # a cache is above the memory's peak
        bound_s = moved / (entry.memory_gb_s * 1e9 / entry.devices_per_chip)
    params: dict[str, Param] = {"op": op, "num_bytes": num_bytes}
    figures = {TIMES_CACHE: times}
    return bench.measured("memory", timed, params=params, num_bytes=moved, bound_s=bound_s, figures=figures)


def sizes(platform: str, *, quick: bool = False) -> list[int]:
    """From within the first cache to what the last one cannot hold, each STEP times the one before."""
    where = "cpu" if platform == "cpu" else "accelerator"
    largest = SMALLEST[where]
    while largest < max(BEYOND * 2 * cache_bytes(platform), LEAST_LARGEST[where]):
        largest *= 2
    found = [largest]
    while found[-1] // STEP >= SMALLEST[where]:
        found.append(found[-1] // STEP)
    return [found[-1], largest] if quick else found[::-1]
