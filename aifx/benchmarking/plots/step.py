"""A training step: what it consists of, and how it grows."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from aifx.benchmarking import units
from aifx.benchmarking.plots.canvas import CARD, FAINT, INK, SERIES, Canvas, Key, Picture, canvas, duration_axis
from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.views import PARTS, Part, of_name, step_of

ROW = 24


def breakdown(report: Report) -> Picture | None:
    """Each part where it begins, the whole under them, and what the host does meanwhile."""
    step = step_of(report)
    if step is None:
        return None
    ends = np.cumsum([0.0, *(part.seconds for part in step.parts)])
    right = max(float(ends[-1]), step.whole_s, *(part.seconds for part in step.beside))
    rows = [(part, float(start), SERIES[i]) for i, (part, start) in enumerate(zip(step.parts, ends, strict=False))]
    if step.parts[-1].name == "the rest":
        rows[-1] = (*rows[-1][:2], FAINT)
    rows.append((Part("the whole", step.whole_s, 1.0), 0.0, FAINT))
    rows += [(part, 0.0, SERIES[len(PARTS) + i]) for i, part in enumerate(step.beside)]
    with canvas("step", height=30 + ROW * len(rows)) as on:
        for number, (part, start, color) in enumerate(rows):
            _bar(on, number, part, start, color, right)
        on.axes.set_yticks(range(len(rows)), [part.name for part, _, _ in rows])
        on.axes.tick_params(axis="y", length=0, labelcolor=INK)
        on.axes.grid(visible=False, axis="y")
        on.axes.invert_yaxis()
        on.axes.set_xlim(0, right)
        duration_axis(on.axes.xaxis)
        svg = on.svg()
    words = [f"its parts, one by one, take {units.duration(step.over_s)} longer"] if step.over_s else []
    if step.beside:
        words.append(f"{' and '.join(part.name for part in step.beside)} are the host's, beside the device's work")
    return Picture("A training step", svg, "; ".join(words))


def _bar(on: Canvas, row: int, part: Part, start: float, color: str, right: float) -> None:
    """With its words where there is room: behind it, before it, within it."""
    (bar,) = on.axes.barh(row, part.seconds, left=start, height=0.62, color=color)
    text = units.duration(part.seconds) + (f", {units.share(part.fraction)}" if part.fraction != 1 else "")
    on.tip(bar, f"{part.name}: {text}")
    end = start + part.seconds
    where: dict[str, Any]
    if end < 0.6 * right:
        where = {"xy": (end, row), "xytext": (4, 0)}
    elif start > 0.4 * right:
        where = {"xy": (start, row), "xytext": (-4, 0), "ha": "right"}
    else:
        where = {"xy": (start, row), "xytext": (6, 0), "color": CARD, "weight": "bold"}
    on.axes.annotate(text, textcoords="offset points", va="center", **where)


def growth(report: Report) -> Picture | None:
    """A line for each of batch, sequence and depth: the step's time against its own at the smallest."""
    found: dict[str, list[tuple[float, Result]]] = {}
    for result in of_name(report, "train.growth"):
        axis, value = result.params.get("axis"), result.params.get("value")
        if isinstance(value, int | float) and value > 0 and result.median_s > 0:  # both axes are logarithmic
            found.setdefault(str(axis), []).append((float(value), result))
    series = {
        axis: sorted(points, key=lambda point: point[0])
        for axis, points in found.items()
        if len({value for value, _ in points}) > 1
    }
    if not series:
        return None
    keys = []
    with canvas("growth") as on:
        axes = on.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, (axis, points) in enumerate(series.items()):
            first, base = points[0]
            x = np.array([value / first for value, _ in points])
            y = np.array([result.median_s / base.median_s for _, result in points])
            axes.plot(x, y, color=SERIES[number % len(SERIES)])
            for (value, result), right, up in zip(points, x, y, strict=True):
                (mark,) = axes.plot(right, up, "o", color=SERIES[number % len(SERIES)])
                on.tip(mark, f"{axis} {value:g}: {units.duration(result.median_s)}, {up:.2f} times that of {first:g}")
            power = np.log(y[-1] / y[0]) / np.log(x[-1] / x[0])
            keys.append(Key(f"{axis} from {first:g}: power {power:.2f}", number % len(SERIES)))
        high = max(points[-1][0] / points[0][0] for points in series.values())
        axes.plot([1, high], [1, high], color=FAINT, lw=1.2, ls="--", zorder=1.5)
        axes.set_xlabel("times as large")
        axes.set_ylabel("times as long")
        for line in (axes.xaxis, axes.yaxis):
            line.set_minor_locator(NullLocator())
            line.set_minor_formatter(NullFormatter())
            line.set_major_locator(LogLocator(2, numticks=8))
            line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        svg = on.svg()
    keys.append(Key("in proportion", is_dashed=True))
    return Picture("How a step's time grows", svg, "", keys)
