"""The least time in which a device could do some work, and what its caches hold."""

from __future__ import annotations

from pathlib import Path

from aifx.ceilings import find_ceilings, measured_peak
from aifx.hardware import find_accelerator, peak_of
from jax_kernels.forms import Device
from jax_kernels.op import Work

GPU_CACHE_BYTES = 64 << 20
"""More than the L2 of an A100 (40 MB), an H100 (50 MB) or a vector memory of a TPU; a B200 has 126 MB."""

CPU_CACHE_BYTES = 32 << 20
"""Where the system does not tell."""


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


def cache_bytes(platform: str) -> int:
    """What the largest cache of a device holds, of a CPU the cache that its cores share."""
    if platform != "cpu":
        return GPU_CACHE_BYTES
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        if text[:-1].isdigit() and text[-1:] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes, default=CPU_CACHE_BYTES)
