"""Ticks of an axis that shows sizes, rates or times."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator

from aifx.core import units
from aifx.core.pages.canvas import ticks


def size_ticks(axis: Axis, text: Callable[[float], str]) -> None:
    """A tick at a power of two."""
    axis.axes.set_xscale("log", base=2)
    ticks(axis, LogLocator(2, numticks=6), text)


def rate_ticks(axis: Axis) -> None:
    """Amounts a second with the unit's prefix; the unit is at the axis."""
    locator = LogLocator(10, numticks=6) if axis.get_scale() == "log" else MaxNLocator(5)
    ticks(axis, locator, lambda value: units.rate(value) if value else "0")


def duration_ticks(axis: Axis, most: int = 5) -> None:
    ticks(axis, MaxNLocator(most), lambda value: units.duration(value) if value > 0 else "0")
