"""A number with where it comes from, and the rates that predict time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aifx.machine.catalogue import peak_of
from aifx.machine.measured_peaks import find_ceilings, measured_peak
from aifx.planning.hardware import Hardware

Basis = Literal["measured", "compiled", "counted", "estimated", "nameplate", "declared"]

PRODUCT_SHARE = 0.8
"""Of the nameplate peak, at the best shape: 0.78 to 0.87 of A100, H100, GH200 and B200 (stas00/ml-engineering, maximum
achievable matmul FLOPS)."""

CPU_PRODUCT_SHARE = 0.6
"""Of the peak that a CPU's clock and vector units give: a guess until `aifx bench hardware` has measured it."""

CPU_SHAPES_SHARE = 0.9
"""Of a CPU's best product: what the products of a training step reach together. GPT-2 of 10M on two cores of an AMD
EPYC: 145 to 175 GFLOP/s by shape, where a product of 1,024 rows reached 167."""

MEMORY_SHARE = 0.9
"""Of the nameplate bandwidth."""

CPU_MEMORY_BYTES_S = 8e9
"""Of each core, until `aifx bench hardware` has measured the triad."""

TRANSCENDENTAL_S = 2.4e-9
"""An exponential or the like on one core of a CPU (XLA of jaxlib 0.12, AMD EPYC)."""


@dataclass(frozen=True)
class Figure:
    """A number of a plan.

    Attributes:
        basis: measured (here or by others), compiled (by XLA), counted (from shapes), estimated, nameplate (the
            vendor's) or declared (by the user).
        source: where it comes from, in words.
    """

    value: float
    basis: Basis
    source: str


@dataclass(frozen=True)
class Rates:
    """What one device reaches. `products` is by dtype of the operands."""

    products: Mapping[str, Figure]
    memory: Figure


def rates_of(hardware: Hardware, dtypes: list[str], cores: int) -> Rates:
    """Raises ValueError if the catalogue has no peak of a dtype."""
    return Rates({dtype: _products(hardware, dtype) for dtype in dtypes}, _memory(hardware, cores))


def _products(hardware: Hardware, dtype: str) -> Figure:
    kind, platform = hardware.device_kind, hardware.platform
    if hardware.is_here and (found := measured_peak(kind, platform, 1, dtype)) is not None:
        share = CPU_SHAPES_SHARE if platform == "cpu" else 1.0
        of = f"{share:.0%} of " if share < 1 else ""
        return Figure(share * found.flops, "measured", f"{of}{found.formula} (aifx bench hardware)")
    peak = peak_of(kind, platform, 1, dtype)
    if peak is None:
        raise ValueError(f"the catalogue has no peak of {kind} in {dtype}")
    if platform == "cpu":
        formula = peak.formula.removeprefix("estimate: ")
        source = f"{CPU_PRODUCT_SHARE:.0%} of {formula}; aifx bench hardware measures it"
        return Figure(CPU_PRODUCT_SHARE * peak.flops, "estimated", source)
    chip = hardware.chip
    assert chip is not None
    if chip.usual_tflops is not None and "bfloat16" in chip.peak_tflops:
        share = chip.usual_tflops / chip.peak_tflops["bfloat16"]
        return Figure(share * peak.flops, "estimated", f"{share:.0%} of {peak.formula}, as others measured")
    return Figure(PRODUCT_SHARE * peak.flops, "estimated", f"{PRODUCT_SHARE:.0%} of {peak.formula}")


def _memory(hardware: Hardware, cores: int) -> Figure:
    if hardware.is_here and (rate := find_ceilings(hardware.device_kind, hardware.platform).rate("memory")):
        return Figure(rate, "measured", "aifx bench hardware: the triad")
    if hardware.chip is None:
        source = f"{CPU_MEMORY_BYTES_S / 1e9:g} GB/s per core; aifx bench hardware measures it"
        return Figure(CPU_MEMORY_BYTES_S * cores, "estimated", source)
    rate = hardware.chip.memory_gb_s * 1e9 / hardware.chip.devices_per_chip
    return Figure(MEMORY_SHARE * rate, "estimated", f"{MEMORY_SHARE:.0%} of {rate / 1e9:,.0f} GB/s")
