"""Suite "hardware": rates that this machine reaches in products, memory, copies, collectives and dispatch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from aifx.benchmarking.results import Measured
from aifx.benchmarking.suites import Bench
from aifx.benchmarking.timing import sample, sample_in_turn
from aifx.benchmarking.views import TIMES_CACHE
from aifx.core import units
from aifx.core.errors import AifxError, ExitCode
from aifx.machine import microbenchmarks
from aifx.machine.catalogue import find_accelerator, peak_of
from aifx.machine.device_memory import BEYOND, cache_bytes, is_out_of_memory, room

logger = logging.getLogger(__name__)

PRODUCT_ROWS = {"cpu": (512, 1024, 2048), "accelerator": (2048, 4096, 8192, 16384)}
"""On the largest accelerators products rise up to there (stas00/ml-engineering, maximum achievable matmul)."""

CHAINED_ROWS = 8192 * 4
"""Rows of all products of a call on an accelerator: a call has more of smaller ones, so that calls cost nothing."""

BY_EIGEN = ("float32", "float16")
"""Types whose products YNNPACK does no better."""

FASTER = 1.05

SMALLEST = {"cpu": 1 << 14, "accelerator": 1 << 20}
"""Bytes of all arrays: half of a first-level cache; on an accelerator what gives each of its cores a few thousand."""

LEAST_LARGEST = {"cpu": 1 << 27, "accelerator": 1 << 31}
STEP = 4

CALL_BYTES = {"cpu": 1 << 28, "accelerator": 1 << 32}
"""That a call moves at the least: small arrays are gone through often, since a call costs microseconds."""

COPY_BYTES = {"cpu": (1 << 16, 1 << 20, 1 << 26), "accelerator": (1 << 16, 1 << 20, 1 << 24, 1 << 28)}

COLLECTIVE_BYTES = {"cpu": (1 << 16, 1 << 20, 1 << 24), "accelerator": (1 << 16, 1 << 20, 1 << 24, 1 << 28, 1 << 30)}
"""Bytes of a device's buffer, counted as nccl-tests does."""

CHAIN = 64
"""Calls that each wait for the one before on the device, not on the host."""


class WrongResult(AifxError):
    """A device computed or moved something else than it was given: a rate of that is none."""

    exit_code = ExitCode.VERDICT

    def __init__(self, where: str, what: str) -> None:
        why = f"{what}: compared with their one right value"
        super().__init__(f"{where} gives wrong results", why, "aifx doctor --stress")


def measure(bench: Bench) -> Iterator[Measured]:
    """One device alone, the first, then all together. Raises WrongResult."""
    devices = jax.local_devices()
    if len(devices) > 1:
        logger.warning(f"products, memory and copies were measured on the first of {len(devices)} devices")
    yield from products(bench, devices[0])
    yield from memory(bench, devices[0])
    yield from copies(bench, devices[0])
    yield from collectives(bench, devices)
    yield from dispatch(bench)


def products(bench: Bench, device: Any) -> Iterator[Measured]:
    """`matmul` by dtype and size."""
    kind = _kind(device.platform)
    for dtype in microbenchmarks.dtypes_of(device):
        for size in microbenchmarks.USUAL_PRODUCT[kind][:1] if bench.quick else PRODUCT_ROWS[kind]:
            logger.info(f"products of {size} rows, {dtype}")
            try:
                yield _product(bench, device, dtype, size)
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                words = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
                logger.warning(f"left out: products of {size} rows in {dtype}: {words}")


def _product(bench: Bench, device: Any, dtype: str, size: int) -> Measured:
    """By the library that XLA takes, on a CPU in turn with its other one: the faster is what the silicon reaches."""
    is_cpu = device.platform == "cpu"
    chain = 1 if is_cpu else max(CHAINED_ROWS // size, 1)
    libraries = {"default": microbenchmarks.Product(device, dtype, size, chain)}
    if is_cpu and dtype in BY_EIGEN:
        libraries["Eigen"] = microbenchmarks.Product(device, dtype, size, chain, microbenchmarks.EIGEN)
    timed = sample_in_turn(libraries, bench.effort)
    medians = {library: median(samples.seconds) for library, samples in timed.items()}
    best = min(medians, key=lambda library: medians[library])
    if not libraries[best].is_right():
        raise WrongResult(microbenchmarks.name_of(device), f"products in {dtype}")
    flops = libraries["default"].flops
    figures = {}
    if len(libraries) > 1:
        figures = {f"{library.lower()}_flops_per_s": flops / seconds for library, seconds in medians.items()}
        if medians["default"] > FASTER * medians["Eigen"]:
            (option,) = microbenchmarks.EIGEN
            logger.warning(
                f"{dtype} products of {size} rows are more than {FASTER - 1:.0%} faster by Eigen than by what XLA "
                f"takes by itself (XLA_FLAGS=--{option}= takes Eigen, for products of all types)"
            )
    # No vendor prints a CPU's peak: its products are their own ceiling.
    peak = None if is_cpu else peak_of(device.device_kind, device.platform, 1, dtype)
    bound_s = flops / peak.flops if peak else None
    params = {"dtype": dtype, "size": size}
    return bench.measured("matmul", timed[best], params=params, flops=flops, bound_s=bound_s, figures=figures)


def memory(bench: Bench, device: Any) -> Iterator[Measured]:
    """`memory` by STREAM's operations and by the bytes that their arrays take together."""
    for op in ("triad",) if bench.quick else microbenchmarks.ARRAYS:
        for num_bytes in memory_sizes(device.platform, quick=bench.quick):
            logger.info(f"memory: {op} of {units.size(num_bytes)}")
            with _left_out_if_full(f"{op} of {units.size(num_bytes)} in memory"):
                free = room([device])
                if free is not None and free < num_bytes:
                    raise MemoryError
                yield _stream(bench, device, op, num_bytes)


def _stream(bench: Bench, device: Any, op: str, num_bytes: int) -> Measured:
    stream = microbenchmarks.Stream(device, op, num_bytes, CALL_BYTES[_kind(device.platform)])
    timed = sample(stream, bench.effort)
    if count := stream.num_wrong():
        raise WrongResult(microbenchmarks.name_of(device), f"{op} in memory, {count} elements")
    timed.seconds[:] = [seconds / stream.rounds for seconds in timed.seconds]
    moved = stream.num_bytes / stream.rounds
    times = num_bytes / cache_bytes(device.platform)
    entry, bound_s = find_accelerator(device.device_kind), None
    if entry and times >= BEYOND:  # a cache is above the memory's peak
        bound_s = moved / (entry.memory_gb_s * 1e9 / entry.devices_per_chip)
    params, figures = {"op": op, "num_bytes": num_bytes}, {TIMES_CACHE: times}
    return bench.measured("memory", timed, params=params, num_bytes=moved, bound_s=bound_s, figures=figures)


def memory_sizes(platform: str, *, quick: bool = False) -> list[int]:
    """Sizes from within the first cache to beyond the last one, each STEP times the one before."""
    smallest = largest = SMALLEST[_kind(platform)]
    while largest < max(BEYOND * 2 * cache_bytes(platform), LEAST_LARGEST[_kind(platform)]):
        largest *= 2
    found = [largest]
    while found[-1] // STEP >= smallest:
        found.append(found[-1] // STEP)
    return [found[-1], largest] if quick else found[::-1]


def copies(bench: Bench, device: Any) -> Iterator[Measured]:
    """`copy` between host and device by direction and bytes, of page-locked memory where JAX has it."""
    is_cpu = device.platform == "cpu"
    if is_cpu:
        logger.warning("copies: host and device are one memory here; they show what JAX's copying costs, not a link")
    # The largest first: the ceilings of a bench that is ended meanwhile are of the largest that it came to.
    for num_bytes in COPY_BYTES[_kind(device.platform)][::-1][: 1 if bench.quick else None]:
        logger.info(f"copies of {units.size(num_bytes)}")
        transfer = microbenchmarks.Transfer(device, num_bytes)
        if not (is_cpu or transfer.is_pinned):
            logger.warning("copies: JAX offers no page-locked memory here; they are of ordinary memory")
        host = "pinned" if transfer.is_pinned else "pageable"
        for direction, run in (("to_device", transfer.to_device), ("to_host", transfer.to_host)):
            params = {"direction": direction, "num_bytes": num_bytes, "memory": host}
            yield bench.measured("copy", sample(run, bench.effort), params=params, num_bytes=num_bytes)
        if not transfer.is_right():
            raise WrongResult(microbenchmarks.name_of(device), f"copies of {num_bytes} bytes there and back")


def collectives(bench: Bench, devices: list[Any]) -> Iterator[Measured]:
    """`collective` by kind and bytes, `bus_bytes_per_s` being the bus bandwidth of nccl-tests."""
    if len(devices) < 2:
        logger.warning("left out: collectives need two devices or more")
        return
    sizes = COLLECTIVE_BYTES[_kind(devices[0].platform)]
    for kind in microbenchmarks.KINDS:
        for size in sizes[1:2] if bench.quick else sizes:
            logger.info(f"{kind} of {units.size(size)} among {len(devices)} devices")
            with _left_out_if_full(f"{kind} of {units.size(size)}"):
                collective = microbenchmarks.Collective(devices, kind, size)
                if names := collective.wrong():
                    raise WrongResult(", ".join(names), kind)
                timed = sample(collective, bench.effort)
                params = {"kind": kind, "num_bytes": collective.size}
                figures = {"bus_bytes_per_s": collective.bus_bytes / median(timed.seconds)}
                yield bench.measured("collective", timed, params=params, num_bytes=collective.size, figures=figures)


def dispatch(bench: Bench) -> Iterator[Measured]:
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


def _kind(platform: str) -> str:
    return "cpu" if platform == "cpu" else "accelerator"


@contextmanager
def _left_out_if_full(what: str) -> Iterator[None]:
    """Log a warning if memory does not hold what is done inside."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.warning(f"left out: {what}, for which there is no room")
