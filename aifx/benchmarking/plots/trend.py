"""One result over the reports of a name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

from aifx.benchmarking import units
from aifx.benchmarking.plots.canvas import FAINT, SERIES, Picture, canvas, duration_axis
from aifx.benchmarking.results import Report, Result
from aifx.core.pages import date

MOST_LABELS = 4
"""Commits that are written out: more would overlap."""


def trend(name: str, reports: Sequence[Report], key: str, caption: str = "") -> Picture | None:
    """The median of each report, the oldest first, with its interval; a line joins what was measured on one machine.

    Args:
        name: the picture's, within its page.
        key: of the result. None where fewer than two reports have it.
    """
    points = [(at, report, found) for at, report in enumerate(reports) if (found := _result(report, key))]
    if len(points) < 2:
        return None
    with canvas(name, height=170) as on:
        axes, color = on.axes, SERIES[0]
        for (at, report, found), (_, _, before) in zip(points, [points[0], *points], strict=False):
            low, high = found.interval_s
            axes.plot([at, at], [low, high], color=color, lw=5, alpha=0.3, solid_capstyle="butt")
            (mark,) = axes.plot(at, found.median_s, "o", color=color)
            is_told = found is not before and before.median_s > 0
            change = f", {found.median_s / before.median_s - 1:+.1%}" if is_told else ""
            between = f"{units.duration(low)} to {units.duration(high)}"
            when = f"{report.fingerprint.commit or 'no commit'}, {date(report.time)}"
            on.tip(mark, f"{when}: {units.duration(found.median_s)} ({between}){change}")
        for (at, report, found), (then, other, after) in pairwise(points):
            if report.fingerprint.obstacles(other.fingerprint):
                axes.axvline((at + then) / 2, color=FAINT, lw=1, ls=":")
            else:
                axes.plot([at, then], [found.median_s, after.median_s], color=color, lw=1.2)
        step = max(1, -(-len(reports) // MOST_LABELS))
        shown = range(len(reports) - 1, -1, -step)
        axes.set_xticks(list(shown), [reports[at].fingerprint.commit or "" for at in shown], size=10)
        axes.set_xlim(-0.5, len(reports) - 0.5)
        axes.margins(y=0.25)
        duration_axis(axes.yaxis)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        svg = on.svg()
    return Picture(points[0][2].title, svg, caption)


def _result(report: Report, key: str) -> Result | None:
    return next((result for result in report.results if result.key == key), None)
