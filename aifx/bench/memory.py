"""What programs need of a device's memory, and what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

CGROUP = Path("/sys/fs/cgroup")


def program_bytes(program: Any) -> int | None:
    """Arguments, results and temporaries of a compiled program on one device; None where XLA does not tell."""
    stats = program.memory_analysis()
    return None if stats is None else int(stats.argument_size_in_bytes) + _beside(stats)


def extra_bytes(program: Any) -> int | None:
    """The same without its arguments, which are there already."""
    stats = program.memory_analysis()
    return None if stats is None else _beside(stats)


def _beside(stats: Any) -> int:
    return int(stats.output_size_in_bytes + stats.temp_size_in_bytes - stats.alias_size_in_bytes)


def peak_bytes(devices: list[Any]) -> int | None:
    """The most that was in use at once on any of these devices so far; None where the platform does not count it."""
    told = [_stats(device).get("peak_bytes_in_use") for device in devices]
    return max((count for count in told if count is not None), default=None)


def room(devices: list[Any], cgroup: Path = CGROUP) -> int | None:
    """Bytes that are free on each of these devices; None where that is not known."""
    if devices[0].platform == "cpu":  # all of them share the host's
        return min([psutil.virtual_memory().available, *_quota(cgroup)]) // len(devices)
    told = [_stats(device) for device in devices]
    free = [
        stats["bytes_limit"] - stats["bytes_in_use"] for stats in told if {"bytes_limit", "bytes_in_use"} <= {*stats}
    ]
    return min(free) if free else None


def _stats(device: Any) -> dict[str, int]:
    """What the platform counts: empty where it counts nothing: None, an error or -1, as JAX's platforms differ."""
    try:
        told = device.memory_stats() or {}
    except Exception:  # the runtimes' own types
        return {}
    return {name: count for name, count in told.items() if count >= 0}


def _quota(cgroup: Path) -> list[int]:
    """What the control group has left (cgroup v2)."""
    try:
        return [int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())]
    except (OSError, ValueError):  # none, or "max"
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA or the host says so."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
