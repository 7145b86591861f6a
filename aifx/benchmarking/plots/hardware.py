"""What the silicon reaches, by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from aifx.benchmarking import units
from aifx.benchmarking.plots.canvas import (
    CARD,
    FAINT,
    INK,
    LABEL,
    SERIES,
    Canvas,
    Key,
    Picture,
    binary_axis,
    canvas,
    rate_axis,
    short,
)
from aifx.benchmarking.plots.roofline import catalogue_roofs
from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.views import Point, bus_rate, by_size, of_name

ROW = 24


def bandwidth(report: Report) -> Picture | None:
    """Of memory: a fall where a cache is full."""
    series = by_size(of_name(report, "hardware.memory"), _bytes, "op")
    sheet = {roof.label: roof.slope for roof in catalogue_roofs(report, ()) if roof.slope}
    return _by_size("memory", "Memory bandwidth by size", series, "B/s", sheet=sheet)


def products(report: Report) -> Picture | None:
    """Of matrices, by the number of rows."""
    results = of_name(report, "hardware.matmul")
    series = by_size(results, lambda result: result.flops_per_s, "dtype")
    sheet = {roof.label: roof.height for roof in catalogue_roofs(report, series) if roof.height}
    return _by_size("matmul", "Matrix products by size", series, "FLOP/s", sheet=sheet, is_count=True)


def copies(report: Report) -> Picture | None:
    """Between host and device."""
    results = of_name(report, "hardware.copy")
    split_by = [name for result in results[:1] for name in result.params if name not in ("size", "num_bytes", "bytes")]
    return _by_size("copy", "Copies by size", by_size(results, _bytes, *split_by), "B/s")


def collectives(report: Report) -> Picture | None:
    """By kind."""
    results = of_name(report, "hardware.collective")
    series = by_size(results, bus_rate, "kind")
    return _by_size("collective", "Collectives by size", series, "B/s", caption="bus bandwidth")


def _bytes(result: Result) -> float | None:
    return result.bytes_per_s


def _by_size(
    name: str,
    title: str,
    series: Mapping[str, Sequence[Point]],
    unit: str,
    *,
    sheet: Mapping[str, float] = MappingProxyType({}),
    is_count: bool = False,
    caption: str = "",
) -> Picture | None:
    """A line a series; where each has one size, a bar a series. None where there is nothing to compare.

    Args:
        sheet: what the data sheet says, and of what.
        is_count: whether sizes are rows, not bytes.
    """
    if not any(len(points) > 1 for points in series.values()):
        return _bars(name, title.removesuffix(" by size"), series, unit, sheet, caption) if len(series) > 1 else None
    with canvas(name) as on:
        for number, (label, points) in enumerate(series.items()):
            _line(on, label, points, SERIES[number % len(SERIES)], unit, is_count=is_count)
        for label, bound in sheet.items():
            on.axes.axhline(bound, color=FAINT, lw=1.2, ls="--")
            on.axes.annotate(
                f"{label} {units.rate(bound, unit)}",
                (0, bound),
                (4, 2),
                ("axes fraction", "data"),
                textcoords="offset points",
                color=FAINT,
                size=10,
            )
        highest = max(point.y for points in series.values() for point in points)
        lowest = min(point.y for points in series.values() for point in points)
        if highest > 100 * lowest:
            on.axes.set_yscale("log")
        else:
            on.axes.set_ylim(0, 1.08 * max([highest, *sheet.values()]))
        binary_axis(on.axes.xaxis, is_count=is_count)
        rate_axis(on.axes.yaxis, is_log=highest > 100 * lowest)
        on.unit(unit)
        svg = on.svg()
    keys = [Key(label, number % len(SERIES)) for number, label in enumerate(series)]
    return Picture(title, svg, caption, [*keys, *([Key("data sheet", is_dashed=True)] if sheet else [])])


def _bars(
    name: str, title: str, series: Mapping[str, Sequence[Point]], unit: str, sheet: Mapping[str, float], caption: str
) -> Picture:
    """With the data sheet's figure as a mark."""
    with canvas(name, height=30 + ROW * len(series)) as on:
        right = max(*(points[0].y for points in series.values()), *sheet.values())
        for number, (label, (point, *_)) in enumerate(series.items()):
            (bar,) = on.axes.barh(number, point.y, height=0.62, color=SERIES[number % len(SERIES)])
            on.tip(bar, f"{label}: {units.rate(point.low, unit)} to {units.rate(point.high, unit)}")
            is_long = point.y > 0.6 * right
            on.axes.annotate(
                units.rate(point.y, unit),
                (0 if is_long else point.y, number),
                (6 if is_long else 4, 0),
                textcoords="offset points",
                va="center",
                color=CARD if is_long else INK,
                weight="bold" if is_long else "normal",
            )
            if label in sheet:
                on.axes.plot([sheet[label]] * 2, [number - 0.4, number + 0.4], color=FAINT, lw=2)
        on.axes.set_yticks(range(len(series)), [short(label, LABEL) for label in series])
        on.axes.tick_params(axis="y", length=0, labelcolor=INK)
        on.axes.grid(visible=False, axis="y")
        on.axes.invert_yaxis()
        on.axes.set_xlim(0, 1.02 * right)
        rate_axis(on.axes.xaxis)
        svg = on.svg()
    keys = [Key("data sheet", is_dashed=True)] if sheet else []
    return Picture(title, svg, caption, keys)


def _line(on: Canvas, label: str, points: Sequence[Point], color: str, unit: str, *, is_count: bool) -> None:
    """With the interval around it."""
    x = [point.x for point in points]
    on.axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=color, alpha=0.2, lw=0)
    on.axes.plot(x, [point.y for point in points], color=color)
    for point in points:
        (mark,) = on.axes.plot(point.x, point.y, "o", color=color)
        size = f"{point.x:g}" if is_count else units.size(point.x)
        between = f"{units.rate(point.low, unit)} to {units.rate(point.high, unit)}"
        on.tip(mark, f"{label} {size}: {units.rate(point.y, unit)} ({between})")
