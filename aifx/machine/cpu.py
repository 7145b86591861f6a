"""The processor of this machine: its features, and an estimate of its peak, which no vendor prints."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil


def usable_cpus() -> set[int]:
    """The processors that this process may use, by their numbers."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu_of() -> dict[str, Any]:
    """The processor, and the number of its cores that this process may use."""
    return {"cpu": cpu_model(), "cores": len(usable_cpus())}


def cpu_model() -> str:
    info = _cpuinfo()
    named = (info[key] for key in ("model name", "Model", "CPU part") if key in info)
    return next(named, platform.processor() or platform.machine())


def estimate_peak() -> tuple[float, str]:
    """float32 operations a second, and how they were counted: cores x clock x (2 FMA units x vector lanes x 2).

    The cores are those that this process may use. The lanes come from the processor's flags, the clock from the system.
    """
    cores, clock_ghz, (lanes, isa) = len(usable_cpus()), _clock_ghz(), _vector_lanes()
    flops = cores * clock_ghz * 1e9 * 2 * lanes * 2
    return flops, f"estimate: {cores} cores x {clock_ghz:.1f} GHz x 2 FMA units x {lanes} float32 lanes ({isa}) x 2"


def _vector_lanes() -> tuple[int, str]:
    """float32 lanes of one FMA unit, and the instruction set's name."""
    info, words = _cpuinfo(), cpu_flags()
    # AMD family 25 (Zen 4) executes a 512-bit FMA in two passes of 256 bits (AMD Zen 4 optimization guide, 2.9).
    if "avx512f" in words and not (info.get("vendor_id") == "AuthenticAMD" and info.get("cpu family") == "25"):
        return 16, "AVX-512"
    if "avx2" in words or "avx512f" in words:
        return 8, "AVX2"
    return 4, "128-bit"


def cpu_flags() -> frozenset[str]:
    """The processor's features, by Linux's names: "avx512_bf16", "amx_bf16"; on ARM "bf16"."""
    info = _cpuinfo()
    return frozenset(info.get("flags", info.get("Features", "")).split())


def cpu_vendor() -> str:
    """The processor's maker, "Intel" or "AMD"; of others the architecture, "aarch64"."""
    vendors = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
    return vendors.get(_cpuinfo().get("vendor_id", ""), platform.machine())


def matrix_units() -> str:
    """The units of this processor that multiply matrices: "AMX", "AVX-512 with bfloat16", "AVX2", ..."""
    flags = cpu_flags()
    if "amx_bf16" in flags:
        return "AMX"
    widest = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "128-bit")
    return widest + (" with bfloat16" if flags & {"avx512_bf16", "bf16"} else "")


def _clock_ghz() -> float:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        frequency = None
    mhz = (frequency.max or frequency.current) if frequency else 0.0
    return mhz / 1e3 if mhz > 0 else 2.5  # a server's usual base clock, if the system reports none


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
