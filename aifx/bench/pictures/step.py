"""A training step: what it consists of, and how it grows."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from aifx.bench import units
from aifx.bench.pictures.canvas import CARD, FAINT, INK, SERIES, Key, Picture, canvas, duration_axis
from aifx.bench.results import Report, Result
from aifx.bench.views import of_name, step_of

ROW = 24


def breakdown(report: Report) -> Picture | None:
    """Each part where it begins, and the whole under them."""
    step = step_of(report)
    if step is None:
        return None
    rows = [*((part.name, part.seconds) for part in step.parts), ("the whole", step.whole_s)]
    ends = np.cumsum([0.0, *(part.seconds for part in step.parts)])
    right = max(float(ends[-1]), step.whole_s)
    with canvas("step", height=30 + ROW * len(rows)) as on:
        for number, (name, seconds) in enumerate(rows):
            is_part = number < len(step.parts)
            start = float(ends[number]) if is_part else 0.0
            color = SERIES[number] if is_part and name != "the rest" else FAINT
            bars = on.axes.barh(number, seconds, left=start, height=0.62, color=color)
            text = f"{units.duration(seconds)}, {units.share(seconds / step.whole_s)}"
            on.tip(bars[0], f"{name}: {text}")
            text = text if is_part else units.duration(seconds)
            if start + seconds < 0.6 * right:
                on.axes.annotate(text, (start + seconds, number), (4, 0), textcoords="offset points", va="center")
            elif start > 0.4 * right:
                on.axes.annotate(text, (start, number), (-4, 0), textcoords="offset points", va="center", ha="right")
            else:
                on.axes.annotate(
                    text, (start, number), (6, 0), textcoords="offset points", va="center", color=CARD, weight="bold"
                )
        on.axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        on.axes.tick_params(axis="y", length=0, labelcolor=INK)
        on.axes.grid(visible=False, axis="y")
        on.axes.invert_yaxis()
        on.axes.set_xlim(0, right)
        duration_axis(on.axes.xaxis)
        svg = on.svg()
    over = f"measured one by one, its parts take {units.duration(step.over_s)} longer" if step.over_s else ""
    return Picture("A training step", svg, over)


def growth(report: Report) -> Picture | None:
    """A line for each of batch, sequence and depth: the step's time against its own at the smallest."""
    found: dict[str, list[tuple[float, Result]]] = {}
    for result in of_name(report, "train.growth"):
        axis, value = result.params.get("axis"), result.params.get("value")
        if isinstance(value, int | float):
            found.setdefault(str(axis), []).append((float(value), result))
    series = {axis: sorted(points, key=lambda point: point[0]) for axis, points in found.items() if len(points) > 1}
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
