"""The samples of a result in the space of a word: a tick a sample, a line a launch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aifx.benchmarking import units
from aifx.benchmarking.results import Result

WIDTH, LINE, LONE = 120, 7, 12
"""In CSS pixels: of the rug, the height of a launch's line, and that of a launch that is the only one."""

REACH = 1.5
"""Of the slowest tenth's edge over the fastest sample: what lies beyond is drawn at the right end, and counted."""


@dataclass(frozen=True)
class Rug:
    """A drawing, `width` by `height`, in the terms of SVG.

    Attributes:
        lines: the path of each launch's ticks.
        low, middle, high: where the interval and the median are.
        scale: seconds at its left and right ends.
        beyond: samples slower than the right end.
        words: what it shows.
    """

    width: int
    height: int
    lines: list[str]
    low: float
    middle: float
    high: float
    scale: tuple[float, float]
    beyond: int
    words: str


def rug_plot(result: Result) -> Rug:
    """Every sample has a tick."""
    samples = np.concatenate([np.asarray(launch) for launch in result.samples_s])
    start = float(min(samples.min(), result.interval_s[0]))
    reach = start + REACH * float(np.quantile(samples, 0.9) - start)
    end = max(min(float(samples.max()), reach), result.interval_s[1])

    def place(seconds: float) -> float:
        share = (min(seconds, end) - start) / (end - start) if end > start else 0.5
        return round(1 + share * (WIDTH - 2), 1)

    height = LINE if len(result.samples_s) > 1 else LONE
    lines = [
        "".join(f"M{x:g} {number * height + 1}v{height - 2}" for x in sorted({place(s) for s in launch}))
        for number, launch in enumerate(result.samples_s)
    ]
    low, high = result.interval_s
    return Rug(
        width=WIDTH,
        height=height * len(lines),
        lines=lines,
        low=place(low),
        middle=place(result.median_s),
        high=place(high),
        scale=(start, end),
        beyond=int((samples > end).sum()),
        words=f"{len(samples)} samples, {units.duration(start)} to {units.duration(float(samples.max()))}",
    )
