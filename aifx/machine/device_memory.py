"""The memory that programs need, the memory that a device has free, and the size of its caches."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import psutil

from aifx.machine.cpu import usable_cpus

CGROUP = Path("/sys/fs/cgroup")

GPU_CACHE_BYTES = 64 << 20
"""More than the L2 of an A100 (40 MB), an H100 (50 MB) or a vector memory of a TPU; a B200 has 126 MB."""

CPU_CACHE_BYTES = 32 << 20
"""If the system does not report it."""

CPUS = Path("/sys/devices/system/cpu")

BEYOND = 4
"""Times the last caches: STREAM's own rule for what no cache serves (McCalpin, stream.c, for each array)."""


def program_bytes(program: Any) -> int | None:
    """Arguments, results and temporaries of a compiled program on one device; None if XLA does not report them."""
    extra, stats = extra_bytes(program), program.memory_analysis()
    return None if extra is None else extra + int(stats.argument_size_in_bytes)


def extra_bytes(program: Any) -> int | None:
    """The same without the arguments, which are in memory already."""
    stats = program.memory_analysis()
    if stats is None:
        return None
    return int(stats.output_size_in_bytes + stats.temp_size_in_bytes - stats.alias_size_in_bytes)


def peak_bytes(devices: list[Any]) -> int | None:
    """The most that was in use at once on any of these devices so far; None where the platform does not count it."""
    counts = [_stats(device).get("peak_bytes_in_use") for device in devices]
    return max((count for count in counts if count is not None), default=None)


def peak_memory(devices: list[Any]) -> int | None:
    """`peak_bytes`; on a CPU, the most that this process ever had in memory."""
    if devices[0].platform != "cpu":
        return peak_bytes(devices)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def room(devices: list[Any], cgroup: Path = CGROUP) -> int | None:
    """Bytes that are free on each of these devices; None where that is not known."""
    if devices[0].platform == "cpu":  # all of them share the host's
        return min([psutil.virtual_memory().available, *_quota(cgroup)]) // len(devices)
    counted = [stats for stats in map(_stats, devices) if {"bytes_limit", "bytes_in_use"} <= stats.keys()]
    return min((stats["bytes_limit"] - stats["bytes_in_use"] for stats in counted), default=None)


def _stats(device: Any) -> dict[str, int]:
    """The statistics that the platform counts. JAX's platforms report none as None, as an error or as -1."""
    try:
        stats = device.memory_stats() or {}
    except Exception:  # the runtimes' own types
        return {}
    return {name: count for name, count in stats.items() if count >= 0}


def _quota(cgroup: Path) -> list[int]:
    """The memory that the control group has left (cgroup v2)."""
    try:
        return [int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())]
    except (OSError, ValueError):  # none, or "max"
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA or the host says so."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def cache_bytes(platform: str, cpus: Path = CPUS) -> int:
    """The size of a device's last-level caches together; of a CPU those of all cores that may be used, since sockets
    and groups of cores have one each."""
    if platform != "cpu":
        return GPU_CACHE_BYTES
    caches: dict[tuple[int, str], int] = {}  # by level and by the cores that share it
    for index in (index for cpu in usable_cpus() for index in (cpus / f"cpu{cpu}" / "cache").glob("index*")):
        try:
            size, level, shared = ((index / name).read_text().strip() for name in ("size", "level", "shared_cpu_list"))
        except OSError:
            continue
        units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        if size[:-1].isdigit() and size[-1:] in units and level.isdigit():
            caches[int(level), shared] = int(size[:-1]) * units[size[-1]]
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or CPU_CACHE_BYTES
