"""A training step: what it consists of, and how it grows."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import LogLocator

from aifx.benchmarking.plots.ticks import duration_ticks
from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.views import PARTS, Part, of_name, step_of
from aifx.core import units
from aifx.core.pages.canvas import FAINT, Picture, canvas, ticks

ROW = 24


def breakdown(report: Report) -> Picture | None:
    """Each part where it begins, the whole under them, and what the host does meanwhile."""
    step = step_of(report)
    if step is None:
        return None
    ends = np.cumsum([0.0, *(part.seconds for part in step.parts)])
    right = max(float(ends[-1]), step.whole_s, *(part.seconds for part in step.beside))
    rows = [
        (part, float(start), FAINT if part.name == "the rest" else f"C{i}")
        for i, (part, start) in enumerate(zip(step.parts, ends, strict=False))
    ]
    rows.append((Part("the whole", step.whole_s, 1.0), 0.0, FAINT))
    rows += [(part, 0.0, f"C{len(PARTS) + i}") for i, part in enumerate(step.beside)]
    words = [f"its parts, one by one, take {units.duration(step.over_s)} longer"] if step.over_s else []
    if step.beside:
        words.append(f"{' and '.join(part.name for part in step.beside)} are the host's, beside the device's work")
    with canvas("step", height=30 + ROW * len(rows)) as on:
        for row, (part, start, color) in enumerate(rows):
            text = units.duration(part.seconds) + (f", {units.share(part.fraction)}" if part.fraction != 1 else "")
            on.bar(row, start, part.seconds, right, color, text, f"{part.name}: {text}")
        on.rows([part.name for part, _, _ in rows])
        on.axes.set_xlim(0, right)
        duration_ticks(on.axes.xaxis)
        return on.picture("A training step", "; ".join(words))


def growth(report: Report) -> Picture | None:
    """A line for each of batch, sequence and depth: the step's time against its own at the smallest."""
    found: dict[str, dict[float, Result]] = {}
    for result in of_name(report, "train.growth"):
        axis, value = result.params.get("axis"), result.params.get("value")
        if isinstance(value, int | float) and value > 0 and result.median_s > 0:  # both axes are logarithmic
            found.setdefault(str(axis), {})[float(value)] = result
    series = {axis: sorted(points.items()) for axis, points in found.items() if len(points) > 1}
    if not series:
        return None
    with canvas("growth") as on:
        on.axes.set(xscale="log", yscale="log", xlabel="times as large", ylabel="times as long")
        for number, (axis, points) in enumerate(series.items()):
            first, base = points[0]
            x = np.array([value / first for value, _ in points])
            y = np.array([result.median_s / base.median_s for _, result in points])
            on.axes.plot(x, y, color=f"C{number}")
            for (value, result), right, up in zip(points, x, y, strict=True):
                times = f"{units.duration(result.median_s)}, {up:.2f} times that of {first:g}"
                on.dot(right, up, f"{axis} {value:g}: {times}", f"C{number}")
            power = np.log(y[-1] / y[0]) / np.log(x[-1] / x[0])
            on.key(f"{axis} from {first:g}: power {power:.2f}", number)
        on.axes.axline((1, 1), (2, 2), color=FAINT, lw=1.2, ls="--", zorder=1.5)
        on.key("in proportion", is_dashed=True)
        for line in (on.axes.xaxis, on.axes.yaxis):
            ticks(line, LogLocator(2, numticks=8), lambda value: f"{value:g}")
        return on.picture("How a step's time grows")
