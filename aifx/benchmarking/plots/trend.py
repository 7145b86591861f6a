"""One result over the reports of a name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from aifx.benchmarking.plots.ticks import duration_ticks
from aifx.benchmarking.results import Report
from aifx.core import units
from aifx.core.pages import date
from aifx.core.pages.canvas import FAINT, Picture, canvas

MOST_LABELS = 4
"""Commits that are written out: more would overlap."""


def trend(name: str, reports: Sequence[Report], key: str, caption: str = "") -> Picture | None:
    """The median of each report, the oldest first, with its interval; a line joins what was measured on one machine.
    None where fewer than two reports have a result of this key."""
    points = [(at, report, one) for at, report in enumerate(reports) for one in report.results if one.key == key]
    if len(points) < 2:
        return None
    with canvas(name, height=170) as on:
        before = 0.0
        for at, report, found in points:
            low, high = found.interval_s
            on.axes.plot([at, at], [low, high], color="C0", lw=5, alpha=0.3, solid_capstyle="butt")
            change = f", {found.median_s / before - 1:+.1%}" if before > 0 else ""
            between = f"{units.duration(low)} to {units.duration(high)}"
            when = f"{report.fingerprint.commit or 'no commit'}, {date(report.time)}"
            on.dot(at, found.median_s, f"{when}: {units.duration(found.median_s)} ({between}){change}", "C0")
            before = found.median_s
        for (at, report, found), (then, other, after) in pairwise(points):
            if report.fingerprint.obstacles(other.fingerprint):
                on.axes.axvline((at + then) / 2, color=FAINT, lw=1, ls=":")
            else:
                on.axes.plot([at, then], [found.median_s, after.median_s], color="C0", lw=1.2)
        labelled = range(len(reports) - 1, -1, -max(1, -(-len(reports) // MOST_LABELS)))
        on.axes.set_xticks(list(labelled), [reports[at].fingerprint.commit or "" for at in labelled], size=10)
        on.axes.set_xlim(-0.5, len(reports) - 0.5)
        on.axes.margins(y=0.25)
        duration_ticks(on.axes.yaxis, most=4)
        return on.picture(points[0][2].title, caption)
