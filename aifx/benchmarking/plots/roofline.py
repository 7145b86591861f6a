"""Each kernel under the roofs of its machine (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from aifx.benchmarking import units
from aifx.benchmarking.plots.canvas import CARD, FAINT, INK, SERIES, Canvas, Key, Picture, canvas, rate_axis
from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.views import memory_rate, of_name
from aifx.machine.catalogue import find_accelerator, peak_of

LEAST_APART = 0.05
"""Of two labels, as a share of the picture's height: less would write one over the other."""

CACHE = 1.5
"""Times the memory's rate, from which on another roof than the memory's is meant."""


@dataclass(frozen=True)
class Roof:
    """A bound on operations a second (`height`), or on bytes a second (`slope`).

    Attributes:
        sheet: what the data sheet says of the same, where this was measured.
    """

    label: str
    is_measured: bool
    height: float | None = None
    slope: float | None = None
    sheet: float | None = None

    @property
    def words(self) -> str:
        """ "memory 3.22 TB/s of 3.35 TB/s"."""
        unit = "FLOP/s" if self.height else "B/s"
        of = f" of {units.rate(self.sheet, unit)}" if self.sheet else ""
        return f"{self.label} {units.rate(self.height or self.slope or 0.0, unit)}{of}"


def roofline(report: Report) -> Picture | None:
    """None if no kernel reports both its operations and its bytes."""
    kernels = [_counted(r) for r in report.results if r.name.startswith("kernels.")]
    kernels = [kernel for kernel in kernels if kernel.flops_per_s and kernel.bytes_per_s]
    if not kernels:
        return None
    roofs = _all_roofs(report, kernels)
    ops = list(dict.fromkeys(kernel.name for kernel in kernels))
    with canvas("roofline", height=300) as on:
        axes = on.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        x, y = _window(kernels, roofs)
        axes.set_xlim(*x)
        axes.set_ylim(*y)
        for kernel in sorted(kernels, key=lambda kernel: _is_best(kernel, kernels)):
            _mark(on, kernel, ops.index(kernel.name) % len(SERIES), is_best=_is_best(kernel, kernels))
        axes.set_xlabel("FLOP/byte")
        on.unit("FLOP/s")
        rate_axis(axes.xaxis, is_log=True)
        rate_axis(axes.yaxis, is_log=True)
        _roofs(on, roofs, x, y)
        svg = on.svg()
    keys = [Key(op.partition(".")[2], number % len(SERIES)) for number, op in enumerate(ops)]
    if any(not roof.is_measured for roof in roofs):
        sheet = find_accelerator(str(report.fingerprint.hardware.get("device_kind", "")))
        keys.append(Key("data sheet" if sheet else "estimated peak", is_dashed=True))
    if any(roof.is_measured for roof in roofs):
        keys.append(Key("measured"))
    caption = "a dot a kernel; filled, the fastest implementation of its case; hollow, the others"
    if any("elementwise_flops" in kernel.figures for kernel in kernels):
        caption += "; of ops without matrix products the operations are those that XLA counts in the reference"
    return Picture("Kernels under the roofline", svg, caption, keys)


def _counted(kernel: Result) -> Result:
    """With the operations of an op that has no matrix products."""
    flops = kernel.figures.get("elementwise_flops")
    return (
        kernel.model_copy(update={"flops_per_s": flops / kernel.median_s}) if flops and kernel.median_s > 0 else kernel
    )


def measured_roofs(report: Report) -> list[Roof]:
    """The best product of each dtype; the main memory, and the fastest cache where that is another thing."""
    best: dict[str, float] = {}
    for result in of_name(report, "hardware.matmul"):
        dtype = str(result.params.get("dtype", ""))
        best[dtype] = max(best.get(dtype, 0.0), result.flops_per_s or 0.0)
    roofs = [Roof(dtype, True, height=flops) for dtype, flops in best.items() if flops]
    if memory := memory_rate(report):
        roofs.append(Roof("memory", True, slope=memory))
        fastest = max(result.bytes_per_s or 0.0 for result in of_name(report, "hardware.memory"))
        if fastest > CACHE * memory:
            roofs.append(Roof("cache", True, slope=fastest))
    return roofs


def catalogue_roofs(report: Report, dtypes: Iterable[str]) -> list[Roof]:
    """Of one device, by its data sheet; none for a CPU, for which none prints such numbers."""
    hardware = report.fingerprint.hardware
    kind, platform = str(hardware.get("device_kind", "")), str(hardware.get("platform", ""))
    accelerator = find_accelerator(kind)
    if accelerator is None:
        return []
    peaks = {dtype: peak.flops for dtype in sorted(dtypes) if (peak := peak_of(kind, platform, 1, dtype))}
    roofs = [Roof(dtype, False, height=flops) for dtype, flops in peaks.items()]
    return [*roofs, Roof("memory", False, slope=accelerator.memory_gb_s * 1e9 / accelerator.devices_per_chip)]


def _all_roofs(report: Report, kernels: list[Result]) -> list[Roof]:
    """The peaks of the kernels' dtypes. If none is known, the one that their shares refer to."""
    dtypes = {str(kernel.params.get("dtype")) for kernel in kernels}
    sheet = catalogue_roofs(report, dtypes)
    said = {roof.label: roof.height or roof.slope for roof in sheet}
    measured = [roof for roof in measured_roofs(report) if roof.slope or roof.label in dtypes]
    roofs = [*(replace(roof, sheet=said.get(roof.label)) for roof in measured), *sheet]
    peaks: dict[float, list[str]] = {}
    for dtype in sorted(dtypes - {roof.label for roof in roofs}):
        products = [kernel for kernel in kernels if "elementwise_flops" not in kernel.figures]
        bounds = [_bound(kernel) for kernel in products if kernel.params.get("dtype") == dtype]
        peaks.setdefault(float(f"{max(bounds, default=0.0):.3g}"), []).append(dtype)
    return roofs + [Roof(", ".join(alike), False, height=height) for height, alike in peaks.items() if height]


def _bound(kernel: Result) -> float:
    """Operations a second at all of its roofline: the peak, if it is not the memory that binds it."""
    return (kernel.flops_per_s or 0.0) / kernel.roofline_fraction if kernel.roofline_fraction else 0.0


def _window(kernels: list[Result], roofs: list[Roof]) -> tuple[tuple[float, float], tuple[float, float]]:
    """What is seen: the kernels, and each ridge with some roof at its right."""
    intensities = [_intensity(kernel) for kernel in kernels]
    rates = [kernel.flops_per_s or 0.0 for kernel in kernels]
    heights = [roof.height for roof in roofs if roof.height]
    slopes = [roof.slope for roof in roofs if roof.slope]
    ridges = [max(heights) / min(slopes)] if heights and slopes else []
    x = min([*intensities, *ridges]) / 2, max([*intensities, *ridges]) * 4
    low, high = min(rates) / 2.5, max([*rates, *heights]) * 2.5
    # A roof that rises through the whole picture shows where memory, and where compute, is what binds.
    low = min([low, *(2 * slope * x[0] for slope in slopes)])
    return x, (low, high)


def _intensity(kernel: Result) -> float:
    return (kernel.flops_per_s or 0.0) / (kernel.bytes_per_s or 1.0)


def _is_best(kernel: Result, kernels: list[Result]) -> bool:
    """Whether no other implementation of its op, case and dtype is faster."""

    def case(of: Result) -> Any:
        return of.name, {name: value for name, value in of.params.items() if name != "implementation"}

    return all(kernel.median_s <= other.median_s for other in kernels if case(other) == case(kernel))


def _mark(on: Canvas, kernel: Result, series: int, *, is_best: bool) -> None:
    color = SERIES[series]
    (mark,) = on.axes.plot(
        _intensity(kernel),
        kernel.flops_per_s,
        "o",
        color=color,
        markerfacecolor=color if is_best else CARD,
        markeredgewidth=1.2,
        markersize=5.5 if is_best else 4.5,
    )
    share = "" if kernel.roofline_fraction is None else f", {units.share(kernel.roofline_fraction)} of its bound"
    rate = units.rate(kernel.flops_per_s or 0.0, "FLOP/s")
    name = units.named(kernel.name.partition(".")[2], kernel.params)
    on.tip(mark, f"{name}: {rate}{share}, {units.duration(kernel.median_s)}")


def _roofs(on: Canvas, roofs: list[Roof], x: tuple[float, float], y: tuple[float, float]) -> None:
    """Flat ones from where the fastest memory reaches them, rising ones up to the highest flat one."""
    slopes = [roof.slope for roof in roofs if roof.slope]
    heights = [roof.height for roof in roofs if roof.height]
    top = max(heights, default=y[1])
    named = {roof.label for roof in roofs if roof.is_measured}
    room, free = (y[1] / y[0]) ** LEAST_APART, math.inf
    for roof in sorted(roofs, key=lambda roof: -(roof.height or roof.slope or 0.0)):
        style: dict[str, Any] = (
            {"color": INK, "lw": 1.4} if roof.is_measured else {"color": FAINT, "lw": 1.2, "ls": "--"}
        )
        is_labelled = roof.is_measured or roof.label not in named
        if roof.height:
            start = roof.height / max(slopes) if slopes else x[0]
            on.axes.plot([max(start, x[0]), x[1]], [roof.height] * 2, zorder=1.5, **style)
            if is_labelled:
                # Above its lines, for the kernels are below; unless another roof is too near.
                above = max(roof.height, roof.sheet or 0.0)
                is_above = above * room <= free
                at = above if is_above else min(roof.height, free)
                free = roof.height if is_above else at / room
                on.axes.annotate(
                    roof.words,
                    (x[1], at),
                    (0, 2 if is_above else -3),
                    textcoords="offset points",
                    color=style["color"],
                    ha="right",
                    va="bottom" if is_above else "top",
                    size=10,
                )
        elif roof.slope:
            on.axes.plot([x[0], top / roof.slope], [roof.slope * x[0], top], zorder=1.5, **style)
            if is_labelled:
                _label_slope(on, roof, x, y, style["color"])


def _label_slope(on: Canvas, roof: Roof, x: tuple[float, float], y: tuple[float, float], color: str) -> None:
    """Along the line, at its lower end."""
    assert roof.slope is not None
    left = max(x[0], y[0] / roof.slope)
    on.figure.draw_without_rendering()  # only then does the picture know how steep a line of slope one is
    (x0, y0), (x1, y1) = on.axes.transData.transform([(left, roof.slope * left), (10 * left, 10 * roof.slope * left)])
    angle = math.atan2(y1 - y0, x1 - x0)
    along, above = 8, 8 if roof.sheet else 4  # the data sheet's line lies between
    on.axes.annotate(
        roof.words,
        (left, roof.slope * left),
        (along * math.cos(angle) - above * math.sin(angle), along * math.sin(angle) + above * math.cos(angle)),
        textcoords="offset points",
        color=color,
        size=10,
        rotation=math.degrees(angle),
        rotation_mode="anchor",
        in_layout=False,
    )
