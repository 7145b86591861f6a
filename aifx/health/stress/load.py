"""Load all devices at once, and measure how much of their rate they keep. Only the child process imports this."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from aifx.core.facts import Absent


def sustained(devices: list[Any], seconds: float) -> dict[str, dict[str, Any]]:
    """Return for each device its rate in the second and in the last quarter, and the share that it kept. The first
    quarter does not count: a cold device is then above the rate that its power cap allows.

    Raises RuntimeError for the device that failed first.
    """
    with ThreadPoolExecutor(len(devices)) as pool:
        found = list(pool.map(lambda device: _driven(device, seconds), devices))
    return {f"{d.platform}:{d.id}": rates for d, rates in zip(devices, found, strict=True)}


def _driven(device: Any, seconds: float) -> dict[str, Any]:
    is_cpu = device.platform == "cpu"
    size, chain, dtype = (512, 8, jnp.float32) if is_cpu else (8192, 16, jnp.bfloat16)
    key = jax.device_put(jax.random.key(0), device)
    a = (jax.random.normal(key, (size, size), jnp.float32) / size**0.5).astype(dtype)
    step = jax.jit(lambda a, b: lax.fori_loop(0, chain, lambda _, c: (a @ c).astype(dtype), b))
    jax.block_until_ready(step(a, a))
    rates: list[tuple[float, float]] = []  # seconds since the start, TFLOP/s
    began = time.perf_counter()
    while (at := time.perf_counter() - began) < seconds or len(rates) < 8:
        jax.block_until_ready(step(a, a))
        rates.append((at, chain * 2 * size**3 / (time.perf_counter() - began - at) / 1e12))
    last = rates[-1][0]
    begin = [rate for at, rate in rates if last / 4 <= at <= last / 2] or [rates[len(rates) // 4][1]]
    end = [rate for at, rate in rates if at >= last * 3 / 4]
    early, late = statistics.median(begin), statistics.median(end)
    return {
        "seconds": round(last, 1),
        "tflops_first": early,
        "tflops_last": late,
        "kept": late / early if early else Absent("no work was done"),
    }
