"""Each kernel under the roofs of its machine (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from aifx.benchmarking.plots.ticks import rate_ticks
from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.views import best_products, memory_rate, of_name
from aifx.core import units
from aifx.core.pages.canvas import CARD, FAINT, INK, Canvas, Picture, canvas
from aifx.machine.catalogue import find_accelerator, peak_of

LEAST_APART = 0.05
"""Least distance of two labels, as a share of the picture's height."""

CACHE = 1.5
"""Times the memory's rate, from which on another roof than the memory's is meant."""


@dataclass(frozen=True)
class Roof:
    """A bound on operations a second, which is flat, or on bytes a second, which rises. `sheet` is what the data sheet
    says of the same, where this was measured."""

    label: str
    rate: float
    unit: Literal["FLOP/s", "B/s"]
    is_measured: bool
    sheet: float | None = None

    @property
    def words(self) -> str:
        """ "memory 3.22 TB/s of 3.35 TB/s"."""
        of = f" of {units.rate(self.sheet, self.unit)}" if self.sheet else ""
        return f"{self.label} {units.rate(self.rate, self.unit)}{of}"


@dataclass(frozen=True)
class Kernel:
    """A result, with its operations per second (of an op without matrix products, those that XLA counts in the
    reference) and per byte."""

    result: Result
    flops_per_s: float
    intensity: float

    @property
    def case(self) -> str:
        params = {name: value for name, value in self.result.params.items() if name != "implementation"}
        return units.named(self.result.name, params)


def roofline(report: Report) -> Picture | None:
    """None if no kernel reports both its operations and its bytes."""
    kernels = _kernels(report)
    if not kernels:
        return None
    roofs = _all_roofs(report, kernels)
    ops = list(dict.fromkeys(kernel.result.name for kernel in kernels))
    fastest: dict[str, float] = {}
    for kernel in kernels:
        fastest[kernel.case] = min(fastest.get(kernel.case, math.inf), kernel.result.median_s)
    x, y = _window(kernels, roofs)
    with canvas("roofline", height=300) as on:
        on.axes.set(xscale="log", yscale="log", xlim=x, ylim=y, xlabel="FLOP/byte")
        for kernel in kernels:
            is_best = kernel.result.median_s <= fastest[kernel.case]
            _mark(on, kernel, f"C{ops.index(kernel.result.name)}", is_best=is_best)
        on.unit("FLOP/s")
        rate_ticks(on.axes.xaxis)
        rate_ticks(on.axes.yaxis)
        _draw_roofs(on, roofs, x, y)
        for number, op in enumerate(ops):
            on.key(op.partition(".")[2], number)
        if any(not roof.is_measured for roof in roofs):
            sheet = find_accelerator(str(report.fingerprint.hardware.get("device_kind", "")))
            on.key("data sheet" if sheet else "estimated peak", is_dashed=True)
        if any(roof.is_measured for roof in roofs):
            on.key("measured")
        caption = "a dot a kernel; filled, the fastest implementation of its case; hollow, the others"
        if any("elementwise_flops" in kernel.result.figures for kernel in kernels):
            caption += "; of ops without matrix products the operations are those that XLA counts in the reference"
        return on.picture("Kernels under the roofline", caption)


def _kernels(report: Report) -> list[Kernel]:
    found = []
    for result in report.results:
        flops_per_s = result.flops_per_s
        if (elementwise := result.figures.get("elementwise_flops")) and result.median_s > 0:
            flops_per_s = elementwise / result.median_s
        if result.suite == "kernels" and flops_per_s and result.bytes_per_s:
            found.append(Kernel(result, flops_per_s, flops_per_s / result.bytes_per_s))
    return found


def measured_roofs(report: Report) -> list[Roof]:
    """The best product of each dtype; the main memory, and the fastest cache where that is another thing."""
    roofs = [Roof(dtype, flops, "FLOP/s", True) for dtype, flops in best_products(report).items()]
    if memory := memory_rate(report):
        roofs.append(Roof("memory", memory, "B/s", True))
        fastest = max(result.bytes_per_s or 0.0 for result in of_name(report, "hardware.memory"))
        if fastest > CACHE * memory:
            roofs.append(Roof("cache", fastest, "B/s", True))
    return roofs


def catalogue_roofs(report: Report, dtypes: Iterable[str]) -> list[Roof]:
    """Roofs of one device by its data sheet; none for a CPU, whose vendors print no such numbers."""
    hardware = report.fingerprint.hardware
    kind, platform = str(hardware.get("device_kind", "")), str(hardware.get("platform", ""))
    accelerator = find_accelerator(kind)
    if accelerator is None:
        return []
    peaks = {dtype: peak.flops for dtype in sorted(dtypes) if (peak := peak_of(kind, platform, 1, dtype))}
    memory = accelerator.memory_gb_s * 1e9 / accelerator.devices_per_chip
    return [
        *(Roof(dtype, flops, "FLOP/s", False) for dtype, flops in peaks.items()),
        Roof("memory", memory, "B/s", False),
    ]


def _all_roofs(report: Report, kernels: list[Kernel]) -> list[Roof]:
    """The peaks of the kernels' dtypes. If none is known, the one that their shares refer to."""
    dtypes = {str(kernel.result.params.get("dtype")) for kernel in kernels}
    sheet = catalogue_roofs(report, dtypes)
    nominal = {roof.label: roof.rate for roof in sheet}
    measured = [roof for roof in measured_roofs(report) if roof.unit == "B/s" or roof.label in dtypes]
    roofs = [*(replace(roof, sheet=nominal.get(roof.label)) for roof in measured), *sheet]
    peaks: dict[float, list[str]] = {}
    for dtype in sorted(dtypes - {roof.label for roof in roofs}):
        # Operations a second at all of a kernel's roofline: the peak, if it is not the memory that binds it.
        bounds = [
            kernel.flops_per_s / kernel.result.roofline_fraction
            for kernel in kernels
            if kernel.result.params.get("dtype") == dtype
            and kernel.result.roofline_fraction
            and "elementwise_flops" not in kernel.result.figures
        ]
        peaks.setdefault(float(f"{max(bounds, default=0.0):.3g}"), []).append(dtype)
    return roofs + [Roof(", ".join(alike), peak, "FLOP/s", False) for peak, alike in peaks.items() if peak]


def _window(kernels: list[Kernel], roofs: list[Roof]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of the axes: they show the kernels, and each ridge with some roof at its right."""
    heights, slopes = ([roof.rate for roof in roofs if roof.unit == unit] for unit in ("FLOP/s", "B/s"))
    ridges = [max(heights) / min(slopes)] if heights and slopes else []
    places = [*(kernel.intensity for kernel in kernels), *ridges]
    left, right = min(places) / 2, max(places) * 4
    rates = [kernel.flops_per_s for kernel in kernels]
    # A roof that rises through the whole picture shows where memory, and where compute, is what binds.
    bottom = min([min(rates) / 2.5, *(2 * slope * left for slope in slopes)])
    return (left, right), (bottom, max([*rates, *heights]) * 2.5)


def _mark(on: Canvas, kernel: Kernel, color: str, *, is_best: bool) -> None:
    result = kernel.result
    share = "" if result.roofline_fraction is None else f", {units.share(result.roofline_fraction)} of its bound"
    rate = units.rate(kernel.flops_per_s, "FLOP/s")
    name = units.named(result.name.partition(".")[2], result.params)
    text = f"{name}: {rate}{share}, {units.duration(result.median_s)}"
    style: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": CARD}
    if is_best:
        style = {"markersize": 5.5, "zorder": 2.1}  # above the others
    on.dot(kernel.intensity, kernel.flops_per_s, text, color, markeredgewidth=1.2, **style)


def _draw_roofs(on: Canvas, roofs: list[Roof], x: tuple[float, float], y: tuple[float, float]) -> None:
    """Flat ones from where the fastest memory reaches them, rising ones up to the highest flat one."""
    steepest = max((roof.rate for roof in roofs if roof.unit == "B/s"), default=math.inf)
    top = max((roof.rate for roof in roofs if roof.unit == "FLOP/s"), default=y[1])
    named = {roof.label for roof in roofs if roof.is_measured}
    room, free = (y[1] / y[0]) ** LEAST_APART, math.inf
    for roof in sorted(roofs, key=lambda roof: -roof.rate):
        color, style = (INK, {"lw": 1.4}) if roof.is_measured else (FAINT, {"lw": 1.2, "ls": "--"})
        is_labelled = roof.is_measured or roof.label not in named
        if roof.unit == "B/s":
            on.axes.plot([x[0], top / roof.rate], [roof.rate * x[0], top], color=color, zorder=1.5, **style)
            if is_labelled:
                _label_slope(on, roof, x, y, color)
            continue
        on.axes.plot([max(roof.rate / steepest, x[0]), x[1]], [roof.rate] * 2, color=color, zorder=1.5, **style)
        if is_labelled:
            # Above its lines, for the kernels are below; unless another roof is too near.
            above = max(roof.rate, roof.sheet or 0.0)
            is_above = above * room <= free
            at = above if is_above else min(roof.rate, free)
            free = roof.rate if is_above else at / room
            offset, alignment = (2, "bottom") if is_above else (-3, "top")
            on.write(roof.words, (x[1], at), (0, offset), color=color, ha="right", va=alignment, size=10)


def _label_slope(on: Canvas, roof: Roof, x: tuple[float, float], y: tuple[float, float], color: str) -> None:
    """Along the line, at its lower end."""
    left = max(x[0], y[0] / roof.rate)
    on.figure.draw_without_rendering()  # only then does the picture know how steep a line of slope one is
    (x0, y0), (x1, y1) = on.axes.transData.transform([(left, roof.rate * left), (10 * left, 10 * roof.rate * left)])
    angle = math.atan2(y1 - y0, x1 - x0)
    along, above = 8, 8 if roof.sheet else 4  # the data sheet's line lies between
    offset = along * math.cos(angle) - above * math.sin(angle), along * math.sin(angle) + above * math.cos(angle)
    turned = {"rotation": math.degrees(angle), "rotation_mode": "anchor", "in_layout": False}
    on.write(roof.words, (left, roof.rate * left), offset, color=color, size=10, **turned)
