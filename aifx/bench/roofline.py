"""The least time in which a device could do some work, and what its caches hold."""

from __future__ import annotations

import os
from pathlib import Path

from aifx.ceilings import find_ceilings, measured_peak
from aifx.hardware import find_accelerator, peak_of
from jax_kernels.forms import Device
from jax_kernels.op import Work

GPU_CACHE_BYTES = 64 << 20
"""More than the L2 of an A100 (40 MB), an H100 (50 MB) or a vector memory of a TPU; a B200 has 126 MB."""

CPU_CACHE_BYTES = 32 << 20
"""Where the system does not tell."""

CPUS = Path("/sys/devices/system/cpu")


def least_seconds(work: Work, dtype: str, device: Device) -> float | None:
    """The larger of the work's operations over the peak and its bytes over the memory's bandwidth: the catalogue's, for
    a device that it lacks what `aifx bench hardware` measured here. None where neither is known."""
    accelerator = find_accelerator(device.kind)
    peak = None if accelerator else measured_peak(device.kind, device.platform, 1, dtype)
    peak = peak or peak_of(device.kind, device.platform, 1, dtype)
    bounds = [work.flops / peak.flops] if peak and work.flops else []
    if accelerator:
        bounds.append(work.num_bytes / (accelerator.memory_gb_s * 1e9 / accelerator.devices_per_chip))
    elif rate := find_ceilings(device.kind, device.platform).rate("memory"):
        bounds.append(work.num_bytes / rate)
    return max(bounds, default=None)


def cache_bytes(platform: str, cpus: Path = CPUS) -> int:
    """What the last caches of a device hold together; of a CPU those of all cores that may be used, since sockets and
    groups of cores have one each."""
    if platform != "cpu":
        return GPU_CACHE_BYTES
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    caches: dict[tuple[int, str], int] = {}  # by level and by the cores that share it
    for index in (index for cpu in usable for index in (cpus / f"cpu{cpu}" / "cache").glob("index*")):
        try:
            size, level, shared = ((index / name).read_text().strip() for name in ("size", "level", "shared_cpu_list"))
        except OSError:
            continue
        units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        if size[:-1].isdigit() and size[-1:] in units and level.isdigit():
            caches[int(level), shared] = int(size[:-1]) * units[size[-1]]
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or CPU_CACHE_BYTES
