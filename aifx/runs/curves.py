"""The curves of a run, drawn by matplotlib from its records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from aifx.core.json_values import number
from aifx.core.pages.canvas import Canvas, Picture, canvas, ticks
from aifx.runs.status import is_step

MOST_POINTS = 300
"""Points of a line: more would make a page of megabytes and show nothing more."""

MOST_CURVES = 6
"""Pictures of metrics of validation."""

CURVES = {
    "loss": "Loss",
    "units_per_s": "Throughput",
    "step_time_s": "Step time, in seconds",
    "data_wait_s": "Wait for data, in seconds",
    "mfu": "MFU",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
}

LARGEST = 1e100
"""Larger numbers overflow where matplotlib squares them."""

Points = tuple[np.ndarray, np.ndarray]


def curves(records: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """A picture for each number of the records, and for each metric of their validations but the loss, which is in the
    picture of the loss. A number that no record has gets none."""
    records = [record for record in records if is_step(record.get("step"))]
    validations = ((record["step"], record.get("validation")) for record in records)
    validated = [(step, metrics) for step, metrics in validations if isinstance(metrics, Mapping)]
    drawn, others = [], []
    for name, title in CURVES.items():
        points = _points([(record["step"], record.get(name)) for record in records])
        if name == "loss":
            held_out = _points([(step, metrics.get("loss")) for step, metrics in validated])
            drawn.append(_curve(name, title, "", points, held_out))
        else:
            unit = f", in {records[-1].get('unit')} per second" if name == "units_per_s" and records else ""
            others.append(_curve(name, f"{title}{unit}", "", points))
    names = dict.fromkeys(name for _, metrics in validated for name in metrics if name != "loss")
    found = [(name, _points([(step, metrics.get(name)) for step, metrics in validated])) for name in names]
    moving = [(name, points) for name, points in found if len(np.unique(points[1])) > 1]  # not the counts of the data
    for name, points in moving[:MOST_CURVES]:
        drawn.append(_curve(f"validation-{name}", name, "on the validation split", None, points))
    return [picture for picture in (*drawn, *others) if picture is not None]


def _points(pairs: Sequence[tuple[int, Any]]) -> Points:
    """The finite numbers among (step, value)."""
    kept = [(step, found) for step, value in pairs if (found := _drawable(value)) is not None]
    steps, values = zip(*kept, strict=True) if kept else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _drawable(value: Any) -> float | None:
    """`value` as a number that matplotlib can place: ranges of larger ones overflow."""
    found = number(value)
    return found if found is not None and abs(found) < LARGEST else None


def _curve(
    name: str, title: str, caption: str, points: Points | None, held_out: Points | None = None
) -> Picture | None:
    """Numbers of training, of validation, or both. None with fewer than two points."""
    shown = [one for one in (points, held_out) if one is not None and len(one[0])]
    if not any(len(steps) > 1 for steps, _ in shown):
        return None
    with canvas(name) as on:
        if points is not None:
            _line(on, *points)
        if held_out is not None:
            _dots(on, *held_out)
        if len(shown) > 1:
            on.key("training", 0)
            on.key("validation", 1)
        ticks(on.axes.xaxis, MaxNLocator(5, integer=True), lambda step: f"{step:,.0f}")
        ticks(on.axes.yaxis, MaxNLocator(5), _short)
        on.axes.set_xlabel("step")
        return on.picture(title, caption)


def _line(on: Canvas, steps: np.ndarray, values: np.ndarray) -> None:
    """The mean of each of MOST_POINTS bins, in a band from the least to the largest of the bin."""
    bins = np.array_split(np.arange(len(steps)), min(MOST_POINTS, len(steps))) if len(steps) else []
    middle = [steps[part].mean() for part in bins]
    if len(bins) < len(steps):
        low, high = [values[part].min() for part in bins], [values[part].max() for part in bins]
        on.axes.fill_between(middle, low, high, color="C0", alpha=0.2, lw=0)
    on.axes.plot(middle, [values[part].mean() for part in bins], color="C0")


def _dots(on: Canvas, steps: np.ndarray, values: np.ndarray) -> None:
    on.axes.plot(steps, values, color="C1", lw=1)
    every = max(math.ceil(len(steps) / MOST_POINTS), 1)
    for step, value in zip(steps[::every], values[::every], strict=True):
        on.dot(step, value, f"step {step:,.0f}: {_short(value)}", "C1", markersize=3)


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
