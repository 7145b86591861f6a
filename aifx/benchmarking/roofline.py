"""The least time in which a device could do some work: the roofline."""

from __future__ import annotations

from aifx.machine.catalogue import find_accelerator, peak_of
from aifx.machine.measured_peaks import find_ceilings, measured_peak
from jax_kernels.implementations import Device
from jax_kernels.op import Work


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
