"""A number with where it comes from, and the rates that predict time, some fitted to published ones (`published.toml`).

A device is described by two rates, as in the roofline model (Williams, Waterman and Patterson 2009,
doi:10.1145/1498765.1498785): operations per second and bytes per second. A data sheet prints peaks that no program
reaches, so each rate is a share of the peak: measured here by `aifx bench hardware`, or fitted to rates of training
that others published. Imports no JAX.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aifx.config.sections import Remat
from aifx.machine.catalogue import Accelerator, peak_of
from aifx.machine.measured_peaks import find_ceilings, measured_peak
from aifx.planning.hardware import Hardware, find_hardware

Basis = Literal["measured", "compiled", "counted", "estimated", "nameplate", "declared"]

CPU_PRODUCT_SHARE = 0.6
"""Share of the peak that a CPU's clock and vector units give: a guess until `aifx bench hardware` has measured it."""

SHAPES_SHARE = 0.9
"""Share of a device's best product that the products of a training step reach together. GPT-2 of 10M on two cores of an
AMD EPYC: 145 to 175 GFLOP/s by shape, where a product of 1,024 rows reached 167."""

CPU_MEMORY_BYTES_S = 8e9
"""Bandwidth of each core, until `aifx bench hardware` has measured the triad."""

TRANSCENDENTAL_S = 2.4e-9
"""An exponential or the like on one core of a CPU (XLA of jaxlib 0.12, AMD EPYC)."""


@dataclass(frozen=True)
class Figure:
    """A number of a plan.

    Attributes:
        basis: measured (here or by others), compiled (by XLA), counted (from shapes), estimated, nameplate (the
            vendor's) or declared (by the user).
        source: where it comes from, in words.
        low, high: between which it is with a probability of 80 %; None if nothing says so.
    """

    value: float
    basis: Basis
    source: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Shares:
    """The shares of an accelerator's data sheet that a training step reaches.

    Attributes:
        products: of the peak, by kind of chip as in CHIPS.
        memory: of the bandwidth. Launches of kernels and gaps between them are in it.
        overlap: of the shorter of computing and collectives in loops, what runs beside the longer.
    """

    products: tuple[float, ...]
    memory: float
    overlap: float


CHIPS = ("TPU", "GA100", "GH100")
"""Kinds of chips that have published rates: TPUs, and GPUs by their die."""

SHARES = Shares(products=(0.90, 0.69, 0.78), memory=0.74, overlap=0.51)
"""Fitted by `benchmarks/plan_published.py` to the rates of `published.toml`."""


@dataclass(frozen=True)
class Rates:
    """The rates that one device reaches.

    Attributes:
        products: by dtype of the operands.
        full_memory: bytes per second that no program exceeds, as far as is known.
    """

    products: Mapping[str, Figure]
    memory: Figure
    full_memory: float


def rates_of(hardware: Hardware, dtypes: list[str], cores: int, shares: Shares = SHARES) -> Rates:
    """The rates of one device for products of these dtypes. Raises ValueError if the catalogue has no peak of one."""
    memory = _memory(hardware, cores, shares.memory)
    full = memory.value if hardware.chip is None or memory.basis == "measured" else memory.value / shares.memory
    return Rates({dtype: _products(hardware, dtype, shares) for dtype in dtypes}, memory, full)


def product_share(chip: Accelerator, shares: Shares = SHARES) -> float:
    """The share of a chip's peak that products reach; for a GPU of another kind, the mean of those of CHIPS."""
    _, *gpus = shares.products
    known = dict(zip(CHIPS, shares.products, strict=True))
    return known.get(chip_kind(chip), sum(gpus) / len(gpus))


def chip_kind(chip: Accelerator) -> str:
    """Which of CHIPS a chip is; "" for another."""
    return "TPU" if chip.generation else chip.die


def _products(hardware: Hardware, dtype: str, shares: Shares) -> Figure:
    kind, platform = hardware.device_kind, hardware.platform
    if hardware.is_here and (found := measured_peak(kind, platform, 1, dtype)) is not None:
        source = f"{SHAPES_SHARE:.0%} of {found.formula} (aifx bench hardware)"
        return Figure(SHAPES_SHARE * found.flops, "measured", source)
    peak = peak_of(kind, platform, 1, dtype)
    if peak is None:
        raise ValueError(f"the catalogue has no peak of {kind} in {dtype}")
    if hardware.chip is None:
        formula = peak.formula.removeprefix("estimate: ")
        source = f"{CPU_PRODUCT_SHARE:.0%} of {formula}; aifx bench hardware measures it"
        return Figure(CPU_PRODUCT_SHARE * peak.flops, "estimated", source)
    share = product_share(hardware.chip, shares)
    return Figure(share * peak.flops, "estimated", f"{share:.0%} of {peak.formula}")


def _memory(hardware: Hardware, cores: int, share: float) -> Figure:
    if hardware.is_here and (rate := find_ceilings(hardware.device_kind, hardware.platform).rate("memory")):
        return Figure(rate, "measured", "aifx bench hardware: the triad")
    if hardware.chip is None:
        source = f"{CPU_MEMORY_BYTES_S / 1e9:g} GB/s per core; aifx bench hardware measures it"
        return Figure(CPU_MEMORY_BYTES_S * cores, "estimated", source)
    rate = hardware.chip.memory_gb_s * 1e9 / hardware.chip.devices_per_chip
    return Figure(share * rate, "estimated", f"{share:.0%} of {rate / 1e9:,.0f} GB/s")


@dataclass(frozen=True)
class PublishedRate:
    """A row of the table.

    Attributes:
        source: the project that published it.
        where: it was read.
        name: of the model.
        model: values of `[model]`.
        mesh: sizes of its axes above 1.
        batch: sequences of a step.
        rate: of a chip: tokens per second, or 10^12 of the model's operations per second.
    """

    source: str
    where: str
    name: str
    model: Mapping[str, Any]
    hardware: str
    mesh: Mapping[str, int]
    seq_len: int
    batch: int
    micro_batches: int
    remat: Remat
    rate: float
    unit: Literal["tokens/s", "TFLOP/s"]


def published_rates() -> list[PublishedRate]:
    """All rows, in the order of the table."""
    document = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
    return [
        PublishedRate(
            source=table["source"],
            where=table["where"],
            name=name,
            model=document["models"][name],
            hardware=hardware,
            mesh=_mesh(mesh),
            seq_len=seq_len,
            batch=batch,
            micro_batches=micro_batches,
            remat=remat,
            rate=rate,
            unit=table["unit"],
        )
        for table in document["tables"]
        for name, hardware, mesh, seq_len, batch, micro_batches, remat, rate in table["rows"]
    ]


@functools.cache
def published_chips() -> frozenset[str]:
    """The catalogue's names of the chips that have a rate."""
    chips = (find_hardware(rate.hardware).chip for rate in published_rates())
    return frozenset(chip.name for chip in chips if chip is not None)


def _mesh(text: str) -> dict[str, int]:
    """The sizes by axis in a text such as "data=2 x fsdp=8"."""
    parts = (part.partition("=") for part in text.split(" x ") if part)
    return {axis: int(size) for axis, _, size in parts}
