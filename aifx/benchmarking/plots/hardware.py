"""Plots of measured rates by size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aifx.benchmarking.plots.roofline import catalogue_roofs
from aifx.benchmarking.plots.ticks import rate_ticks, size_ticks
from aifx.benchmarking.results import Report
from aifx.benchmarking.views import Point, by_size
from aifx.core import units
from aifx.core.pages.canvas import FAINT, HEIGHT, Canvas, Picture, canvas

ROW = 24

Series = Mapping[str, Sequence[Point]]

TITLES = {
    "hardware.memory": "Memory bandwidth",
    "hardware.matmul": "Matrix products",
    "hardware.collective": "Collectives",
    "hardware.copy": "Copies",
}


def measured_by_size(report: Report, name: str) -> Picture | None:
    """A line a series; where each has one size, a bar a series. None where there is nothing to compare."""
    series, short = by_size(report.results, name), name.partition(".")[2]
    unit = "FLOP/s" if name == "hardware.matmul" else "B/s"
    sheet: dict[str, float] = {}
    if name in ("hardware.memory", "hardware.matmul"):
        sheet = {roof.label: roof.rate for roof in catalogue_roofs(report, series) if roof.unit == unit}
    has_lines = any(len(points) > 1 for points in series.values())
    if not has_lines and len(series) < 2:
        return None
    with canvas(short, height=HEIGHT if has_lines else 30 + ROW * len(series)) as on:
        draw = _draw_lines if has_lines else _draw_bars
        draw(on, series, unit, sheet)
        if sheet:
            on.key("data sheet", is_dashed=True)
        title = f"{TITLES[name]} by size" if has_lines else TITLES[name]
        return on.picture(title, "bus bandwidth" if name == "hardware.collective" else "")


def _draw_lines(on: Canvas, series: Series, unit: str, sheet: Mapping[str, float]) -> None:
    """Each with its interval around it."""
    size_text: Callable[[float], str] = units.size if unit == "B/s" else units.digits
    for number, (label, points) in enumerate(series.items()):
        x, color = [point.x for point in points], f"C{number}"
        on.axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=color, alpha=0.2, lw=0)
        on.axes.plot(x, [point.y for point in points], color=color)
        for point in points:
            between = f"{units.rate(point.low, unit)} to {units.rate(point.high, unit)}"
            text = f"{label} {size_text(point.x)}: {units.rate(point.y, unit)} ({between})"
            on.dot(point.x, point.y, text, color)
        on.key(label, number)
    for label, bound in sheet.items():
        on.axes.axhline(bound, color=FAINT, lw=1.2, ls="--")
        words = f"{label} {units.rate(bound, unit)}"
        on.write(words, (0, bound), (4, 2), xycoords=("axes fraction", "data"), size=10)
    rates = [point.y for points in series.values() for point in points]
    if max(rates) > 100 * min(rates):
        on.axes.set_yscale("log")
    else:
        on.axes.set_ylim(0, 1.08 * max([*rates, *sheet.values()]))
    size_ticks(on.axes.xaxis, size_text)
    rate_ticks(on.axes.yaxis)
    on.unit(unit)


def _draw_bars(on: Canvas, series: Series, unit: str, sheet: Mapping[str, float]) -> None:
    """Draw one bar per series of one point, with the data sheet's figure as a mark."""
    right = max(*(points[0].y for points in series.values()), *sheet.values())
    for row, (label, (point, *_)) in enumerate(series.items()):
        between = f"{label}: {units.rate(point.low, unit)} to {units.rate(point.high, unit)}"
        on.bar(row, 0.0, point.y, right, f"C{row}", units.rate(point.y, unit), between)
        if label in sheet:
            on.axes.plot([sheet[label]] * 2, [row - 0.4, row + 0.4], color=FAINT, lw=2)
    on.rows(list(series))
    on.axes.set_xlim(0, 1.02 * right)
    rate_ticks(on.axes.xaxis)
