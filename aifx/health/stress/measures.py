"""What is measured of one device, and of all together. Imports JAX: for the child process alone."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from aifx.hardware import find_accelerator, peak_of
from aifx.health.facts import Absent

CHAIN = 4
"""Products in one call, each of the one before, so that calls cost nothing beside them."""

GPU_DTYPES = ("bfloat16", "float16", "float32", "int8", "float8_e4m3fn")
CPU_DTYPES = ("float32", "bfloat16", "float16", "int8")

ACHIEVABLE_TFLOPS = {"NVIDIA A100 SXM 80GB": 271.2, "NVIDIA A100 SXM 40GB": 271.2, "NVIDIA A100 PCIe 80GB": 252.9,
                     "NVIDIA H100 SXM": 794.5, "NVIDIA GH200 144GB": 828.6, "NVIDIA B200": 1745.0}  # fmt: skip
"""Products of bfloat16 at the best shape, measured (stas00/ml-engineering, maximum achievable matmul FLOPS). Cards that
their power cap holds down are far from their peak and healthy, so the peak alone judges none."""

COPIES_GB_S = {"NVIDIA H100 SXM": 48.0, "NVIDIA A100 SXM 80GB": 21.0, "NVIDIA A100 SXM 40GB": 21.0}
"""Host to device of page-locked memory (Azure/azurehpc-health-checks, nvbandwidth)."""

BUS_GB_S = {"NVIDIA H100 SXM": 460.0, "NVIDIA H200 SXM": 431.0, "NVIDIA A100 SXM 80GB": 228.0}
"""All-reduce of 8 GPUs over NVLink, 16 GiB (Azure/azurehpc-health-checks)."""


def dtypes_of(device: Any) -> tuple[str, ...]:
    return CPU_DTYPES if device.platform == "cpu" else GPU_DTYPES


def matmul(device: Any, dtype: str, slice_s: float) -> dict[str, Any]:
    """Rate of products of square matrices, and whether one of whole numbers is exact."""
    size = 1024 if device.platform == "cpu" else 8192
    accumulates = jnp.int32 if dtype == "int8" else jnp.float32

    def product(a: Any, b: Any) -> Any:
        return lax.dot(a, b, preferred_element_type=accumulates)

    def chained(a: Any, b: Any) -> Any:
        return lax.fori_loop(0, CHAIN, lambda _, c: product(a, c).astype(dtype), b)

    def made(key: Any) -> Any:
        entries = jax.random.randint(key, (size, size), -8, 9)
        return (entries if dtype == "int8" else entries / (8 * size**0.5)).astype(dtype)

    a = jax.jit(made)(jax.device_put(jax.random.key(0), device))
    calls = _timed(jax.jit(chained), (a, a), slice_s)
    tflops = CHAIN * 2 * size**3 / statistics.median(calls) / 1e12
    # Small enough for the few bits in which tensor cores add up products of 8 bits.
    whole = [np.random.default_rng(seed).integers(-2, 3, (256, 256)) for seed in (0, 1)]
    exact = jax.jit(product)(*(jax.device_put(w.astype(jnp.dtype(dtype)), device) for w in whole))
    peak = peak_of(device.device_kind, device.platform, 1, dtype)
    if device.platform == "cpu" and dtype != "float32":
        peak = None
    entry = find_accelerator(device.device_kind)
    usual = ACHIEVABLE_TFLOPS.get(entry.name) if entry and dtype in ("bfloat16", "float16") else None
    return {
        "dtype": dtype,
        "size": size,
        "tflops": tflops,
        "of_peak": tflops * 1e12 / peak.flops if peak else Absent(f"no peak of {device.device_kind} in {dtype}"),
        "peak": peak.formula if peak else "",
        "of_usual": tflops / usual if usual else Absent(f"no usual rate of {device.device_kind} in {dtype} is known"),
        "calls": len(calls),
        "is_right": bool(np.array_equal(np.asarray(exact), whole[0] @ whole[1])),
    }


def memory(device: Any, slice_s: float) -> dict[str, Any]:
    """Bandwidth of x = x / 2 + y in place (two reads, a write), and whether each element is what it must be."""
    count, rounds = (1 << 25, 4) if device.platform == "cpu" else (1 << 28, 16)

    def scale(x: Any, y: Any) -> Any:
        return lax.fori_loop(0, rounds, lambda _, x: x * 0.5 + y, x)

    step = jax.jit(scale, donate_argnums=0)
    x, y = (jax.device_put(jnp.full(count, value, jnp.float32), device) for value in (1.0, 1.0))
    calls: list[float] = []
    x = jax.block_until_ready(step(x, y))
    until = time.perf_counter() + slice_s
    while len(calls) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        x = jax.block_until_ready(step(x, y))
        calls.append(time.perf_counter() - started)
    expected = np.float32(1.0)
    for _ in range(min(rounds * (len(calls) + 1), 60)):
        expected = expected * np.float32(0.5) + np.float32(1.0)
    wrong = int(jax.jit(lambda x: (x != expected).sum())(x))
    gb_s = rounds * 3 * 4 * count / statistics.median(calls) / 1e9
    entry = find_accelerator(device.device_kind)
    peak = entry.memory_gb_s / entry.devices_per_chip if entry else None
    return {
        "gb_s": gb_s,
        "of_peak": gb_s / peak if peak else Absent(f"no peak of {device.device_kind} in the catalogue"),
        "wrong_elements": wrong,
        "is_right": wrong == 0,
    }


def copies(device: Any, slice_s: float) -> list[dict[str, Any]]:
    """Bandwidth between host and device, and whether random bytes come back as they went. Of page-locked memory where
    the backend has it."""
    count = (1 << 26) if device.platform == "cpu" else (1 << 28)
    data = _random_bytes(count)
    on_device = SingleDeviceSharding(device)
    is_pinned = device.platform != "cpu" and any(m.kind == "pinned_host" for m in device.addressable_memories())
    on_host = SingleDeviceSharding(device, memory_kind="pinned_host") if is_pinned else None
    source = jax.block_until_ready(jax.device_put(data, on_host)) if on_host else data

    def there() -> Any:
        return jax.block_until_ready(jax.device_put(source, on_device, may_alias=False))

    def back(x: Any) -> Any:
        return jax.block_until_ready(jax.device_put(x, on_host, may_alias=False)) if on_host else np.array(x)

    rates: dict[str, list[float]] = {"to device": [], "to host": []}
    there()
    until = time.perf_counter() + slice_s
    returned: Any = None
    while len(rates["to host"]) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        x = there()
        middle = time.perf_counter()
        returned = back(x)
        rates["to device"].append(count / (middle - started) / 1e9)
        rates["to host"].append(count / (time.perf_counter() - middle) / 1e9)
    entry = find_accelerator(device.device_kind)
    usual = COPIES_GB_S.get(entry.name) if entry and is_pinned else None
    is_right = bool(np.array_equal(np.asarray(returned), data))
    return [
        {
            "device": way,
            "gb_s": statistics.median(found),
            "of_usual": statistics.median(found) / usual if usual else Absent("no usual rate is known of this device"),
            "is_pinned": is_pinned,
            "is_right": is_right,
        }
        for way, found in rates.items()
    ]


@functools.cache
def _random_bytes(count: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, count, np.uint8)


def collectives(devices: list[Any], slice_s: float) -> list[dict[str, Any]]:
    """Rates among all devices, as nccl-tests counts them (bus bandwidth), and who got a wrong result."""
    n = len(devices)
    count = (1 << 20) if devices[0].platform == "cpu" else (1 << 27)  # float32 on each device
    mesh = Mesh(np.array(devices), ("d",))
    spec = PartitionSpec("d")
    pattern = np.arange(count, dtype=np.float32) % 61

    def each(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))

    rank = jax.device_put(np.arange(1, n + 1, dtype=np.float32), NamedSharding(mesh, spec))
    given = each(lambda r: (jnp.arange(count, dtype=jnp.float32) % 61) * r[0])(rank)
    reduce = each(lambda x: lax.psum(x, "d"))
    gather = each(lambda x: lax.all_gather(x, "d", tiled=True))
    sums = each(lambda x: (x != (jnp.arange(count, dtype=jnp.float32) % 61) * (n * (n + 1) // 2)).sum()[None])
    gathered = each(lambda x: (x.reshape(n, count) != _ranked(n, count)).sum()[None])
    entry = find_accelerator(devices[0].device_kind)
    usual = BUS_GB_S.get(entry.name) if entry and n == 8 else None
    told = []
    for name, run, check, moved in (
        ("all-reduce", reduce, sums, 2 * (n - 1) / n * pattern.nbytes),
        ("all-gather", gather, gathered, (n - 1) * pattern.nbytes),
    ):
        seconds = statistics.median(_timed(run, (given,), slice_s / 2))
        wrong = np.asarray(check(run(given)))
        names = [_name(d) for d, bad in zip(devices, wrong, strict=True) if bad]
        rate = moved / seconds / 1e9
        told.append(
            {
                "device": name,
                "bytes": int(pattern.nbytes),
                "bus_gb_s": rate,
                "of_usual": rate / usual if usual else Absent("no usual rate is known of these devices"),
                "wrong": names,
                "num_wrong": len(names),
            }
        )
    return told


def _ranked(n: int, count: int) -> Any:
    return (jnp.arange(count, dtype=jnp.float32) % 61)[None] * jnp.arange(1, n + 1, dtype=jnp.float32)[:, None]


def _name(device: Any) -> str:
    return f"{device.platform}:{device.id}"


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...], slice_s: float) -> list[float]:
    """Seconds of each call, after one that compiles: for `slice_s`, three at least."""
    jax.block_until_ready(function(*arguments))
    calls: list[float] = []
    until = time.perf_counter() + slice_s
    while len(calls) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        calls.append(time.perf_counter() - started)
    return calls
