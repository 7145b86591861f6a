"""A bench's report, and the history of a name, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any

import numpy as np

from aifx.benchmarking.compare import Comparison, compare
from aifx.benchmarking.plots import pictures
from aifx.benchmarking.plots.trend import trend
from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.views import headlines, machine
from aifx.core import units
from aifx.core.pages import date, render
from aifx.core.plurals import counted

MOST_TRENDS = 12
"""Pictures on a page of a history: those that moved first."""

MOST_NOTES = 8
"""Notes that are not folded."""

MOST_OPEN = 12
"""Lines of a table that is not folded at first."""

RUG_WIDTH, RUG_LINE, RUG_LONE = 120, 7, 12
"""In CSS pixels: of the rug, the height of a launch's line, and that of a launch that is the only one."""

REACH = 1.5
"""Length of a rug, relative to the distance from the fastest sample to the 0.9 quantile. Samples beyond it are drawn at
its right end, and counted."""


def report_page(report: Report) -> str:
    """All of it: pictures of what there is, each result, its samples, what it was measured on."""
    asked, suites = report.request.suites, dict[str, list[Result]]()
    for result in report.results:  # in the order in which they were measured
        suites.setdefault(result.suite, []).append(result)
    return render(
        "aifx.benchmarking",
        "report.html",
        title=report.fingerprint.hardware.get("host") or "this machine",
        command=f"aifx bench {asked[0] if len(asked) == 1 else 'all'}{' --quick' * report.request.quick}",
        subtitle=_subtitle(report),
        report=report,
        headlines=headlines(report),
        suites=suites.items(),
        units=units,
        rug_plot=rug_plot,
        most_open=MOST_OPEN,
        most_notes=MOST_NOTES,
        fingerprint=report.fingerprint.model_dump(),
        pictures=pictures(report),
    )


def history_page(name: str, reports: Sequence[Report]) -> str:
    """Render the history of a baseline's results, from report to report."""
    reports = sorted(reports, key=lambda report: report.time)
    last = reports[-1]
    like = [report for report in reports if not report.fingerprint.obstacles(last.fingerprint)]
    compared = sorted(compare(like[0], last).results, key=_urgency) if len(like) > 1 else []
    drawn = [
        trend(f"trend-{number}", reports, found.after.key, f"{units.change(found.change.ratio)}, {found.verdict}")
        for number, found in enumerate(compared[:MOST_TRENDS])
    ]
    return render(
        "aifx.benchmarking",
        "history.html",
        title=name,
        command=f"aifx bench history {name}",
        subtitle=filter(None, [f"{len(reports)} reports, {date(reports[0].time)} to {date(last.time)}", machine(last)]),
        num_others=len(reports) - len(like),
        pictures=[picture for picture in drawn if picture],
        num_hidden=max(len(compared) - MOST_TRENDS, 0),
        since=f"{like[0].fingerprint.commit or 'the first'}, {date(like[0].time)}",
        units=units,
        rows=compared,
        reports=[_report_row(*pair) for pair in zip(reports, [None, *reports], strict=False)][::-1],
    )


def _urgency(found: Comparison) -> tuple[int, float]:
    """Sort key: slower results first, the worst first; then faster ones; then the rest in the order of measurement."""
    if found.verdict in ("slower", "faster"):
        ratio = found.change.ratio
        return found.verdict == "faster", -abs(log(ratio)) if ratio > 0 else -inf
    return 2, 0.0


def _report_row(report: Report, before: Report | None) -> dict[str, Any]:
    now, changed = report.fingerprint, []
    if before:
        changed = [f"another machine: {what}" for what in now.obstacles(before.fingerprint)]
        changed += [what for what in before.fingerprint.differences(now) if not what.startswith("commit:")]
    when = date(report.time)
    return {"commit": now.commit or "none", "time": when, "launches": report.launches, "changed": changed}


def _subtitle(report: Report) -> list[str]:
    commit = f", commit {report.fingerprint.commit}" if report.fingerprint.commit else ""
    quick = "quick, " if report.request.quick else ""
    took = f"{quick}{counted(report.launches, 'launch', 'es')}, {units.duration(report.duration_s)}"
    return [line for line in (machine(report), f"{date(report.time)}; {took}{commit}") if line]


@dataclass(frozen=True)
class Rug:
    """A drawing in the terms of SVG: a path of ticks for each launch, and the places of the median and its interval.

    Attributes:
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

    def places(seconds: Sequence[float]) -> list[float]:
        if end <= start:
            return [RUG_WIDTH / 2] * len(seconds)
        return [float(place) for place in np.interp(seconds, [start, end], [1, RUG_WIDTH - 1]).round(1)]

    height = RUG_LINE if len(result.samples_s) > 1 else RUG_LONE
    low, middle, high = places([result.interval_s[0], result.median_s, result.interval_s[1]])
    return Rug(
        width=RUG_WIDTH,
        height=height * len(result.samples_s),
        lines=[
            "".join(f"M{x:g} {number * height + 1}v{height - 2}" for x in sorted(set(places(launch))))
            for number, launch in enumerate(result.samples_s)
        ],
        low=low,
        middle=middle,
        high=high,
        scale=(start, end),
        beyond=int((samples > end).sum()),
        words=f"{len(samples)} samples, {units.duration(start)} to {units.duration(float(samples.max()))}",
    )
