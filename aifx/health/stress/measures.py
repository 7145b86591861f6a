"""Measure one device, or all together. Only the child process imports this, because it imports JAX."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from aifx.core.facts import Absent
from aifx.health.probing import counted
from aifx.machine import microbenchmarks
from aifx.machine.catalogue import find_accelerator, peak_of
from aifx.machine.device_memory import BEYOND, cache_bytes, room
from aifx.machine.measured_peaks import find_ceilings
from aifx.machine.microbenchmarks import USUAL_PRODUCT, name_of


def matmul(device: Any, dtype: str, slice_s: float) -> dict[str, Any]:
    """Measure products of square matrices, and check that one of whole numbers is exact."""
    size, chain = USUAL_PRODUCT["cpu" if device.platform == "cpu" else "accelerator"]
    product = microbenchmarks.Product(device, dtype, size, chain)
    calls = _timed(product, slice_s)
    tflops = product.flops / statistics.median(calls) / 1e12
    kind, entry = device.device_kind, find_accelerator(device.device_kind)
    # The estimate of a processor's peak is for float32.
    peak = None if device.platform == "cpu" and dtype != "float32" else peak_of(kind, device.platform, 1, dtype)
    peak_flops = peak.flops if peak else None
    usual = entry.usual_tflops if entry and dtype in ("bfloat16", "float16") else None
    return {
        "dtype": dtype,
        "size": size,
        "tflops": tflops,
        "of_peak": _share(tflops * 1e12, peak_flops, f"the catalogue has no peak of {kind} in {dtype}"),
        "peak": peak.formula if peak else "",
        "of_usual": _share(tflops, usual, f"aifx knows no usual rate of {kind} in {dtype}"),
        "of_own": _of_own(device, f"matmul.{dtype}", tflops * 1e12),
        "calls": len(calls),
        "is_right": product.is_right(),
    }


def memory(device: Any, slice_s: float) -> dict[str, Any]:
    """Measure the bandwidth of y + s x in place (two reads, a write), and check each element."""
    num_bytes, rounds = (_beyond_caches(device), 4) if device.platform == "cpu" else (1 << 31, 16)
    triad = microbenchmarks.Stream(device, "triad", num_bytes, call_bytes=rounds * num_bytes)
    rate = triad.num_bytes / statistics.median(_timed(triad, slice_s))
    wrong = triad.num_wrong()
    entry = find_accelerator(device.device_kind)
    peak = entry.memory_gb_s / entry.devices_per_chip if entry else None
    return {
        "gb_s": rate / 1e9,
        "of_peak": _share(rate / 1e9, peak, f"the catalogue has no peak of {device.device_kind}"),
        "of_own": _of_own(device, "memory", rate),
        "wrong_elements": wrong,
        "is_right": wrong == 0,
    }


def _beyond_caches(cpu: Any) -> int:
    """Return a size that the last-level caches of all cores cannot hold, if there is memory for it. In caches, the
    triad would not measure the memory."""
    wanted = max(1 << 28, BEYOND * cache_bytes("cpu"))
    return min(wanted, max(1 << 28, (room([cpu]) or 0) // 4))


def copies(device: Any, slice_s: float) -> list[dict[str, Any]]:
    """Measure the bandwidth between host and device, and check that random bytes come back unchanged. This uses
    page-locked memory if the backend has it."""
    transfer = microbenchmarks.Transfer(device, (1 << 26) if device.platform == "cpu" else (1 << 28))
    entry = find_accelerator(device.device_kind)
    usual = entry.usual_copy_gb_s if entry and transfer.is_pinned else None
    rows: list[dict[str, Any]] = []
    for way, run in (("to device", transfer.to_device), ("to host", transfer.to_host)):
        rate = transfer.num_bytes / statistics.median(_timed(run, slice_s / 2)) / 1e9
        of_usual = _share(rate, usual, "aifx knows no usual rate of this device")
        rows.append({"device": way, "gb_s": rate, "of_usual": of_usual, "is_pinned": transfer.is_pinned})
    is_right = transfer.is_right()
    return [{**row, "is_right": is_right} for row in rows]


def collectives(devices: list[Any], slice_s: float) -> list[dict[str, Any]]:
    """Measure collectives among all devices (bus bandwidth as in nccl-tests), and check each device's result."""
    n, piece = len(devices), (1 << 22) if devices[0].platform == "cpu" else (1 << 29)
    entry = find_accelerator(devices[0].device_kind)
    usual = entry.usual_all_reduce_gb_s if entry and n == 8 else None
    rows: list[dict[str, Any]] = []
    for name, kind, size in (("all-reduce", "all_reduce", piece), ("all-gather", "all_gather", n * piece)):
        collective = microbenchmarks.Collective(devices, kind, size)
        rate = collective.bus_bytes / statistics.median(_timed(collective, slice_s / 2)) / 1e9
        of_usual = _share(rate, usual, "aifx knows no usual rate of these devices")
        row = {"device": name, "bytes": piece, "bus_gb_s": rate, "of_usual": of_usual}
        rows.append({**row, **counted(wrong=collective.wrong())})
    return rows


def sustained(devices: list[Any], seconds: float) -> dict[str, dict[str, Any]]:
    """Load all devices at once, and return for each its rate in the second and in the last quarter, and the share that
    it kept. The first quarter does not count: a cold device is then above the rate that its power cap allows. Raises
    RuntimeError for the device that failed first."""
    with ThreadPoolExecutor(len(devices)) as pool:
        rates = list(pool.map(lambda device: _driven(device, seconds), devices))
    return {name_of(device): found for device, found in zip(devices, rates, strict=True)}


def _driven(device: Any, seconds: float) -> dict[str, Any]:
    size, chain, dtype = (512, 8, "float32") if device.platform == "cpu" else (8192, 16, "bfloat16")
    products = microbenchmarks.Product(device, dtype, size, chain)
    jax.block_until_ready(products())
    rates: list[tuple[float, float]] = []  # seconds since the start, TFLOP/s
    began = time.perf_counter()
    while (at := time.perf_counter() - began) < seconds or len(rates) < 8:
        jax.block_until_ready(products())
        rates.append((at, products.flops / (time.perf_counter() - began - at) / 1e12))
    last = rates[-1][0]
    early = statistics.median([rate for at, rate in rates if last / 4 <= at <= last / 2] or [rates[len(rates) // 4][1]])
    late = statistics.median([rate for at, rate in rates if at >= last * 3 / 4])
    kept = _share(late, early, "no work was done")
    return {"seconds": round(last, 1), "tflops_first": early, "tflops_last": late, "kept": kept}


def _of_own(device: Any, name: str, rate: float) -> float | Absent:
    """Return the share of the rate that this machine reached before."""
    own = find_ceilings(device.device_kind, device.platform).rate(name)
    return _share(rate, own, "no earlier measurement: aifx bench hardware")


def _share(rate: float, whole: float | None, if_missing: str) -> float | Absent:
    return rate / whole if whole else Absent(if_missing)


def _timed(function: Callable[[], Any], slice_s: float) -> list[float]:
    """Return the time of each call, after one that compiles: calls for `slice_s`, at least three."""
    jax.block_until_ready(function())
    calls: list[float] = []
    until = time.perf_counter() + slice_s
    while len(calls) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        jax.block_until_ready(function())
        calls.append(time.perf_counter() - started)
    return calls
