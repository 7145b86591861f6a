"""A bench's report, and the history of a name, as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, log
from typing import Any

from aifx.benchmarking import units
from aifx.benchmarking.compare import Comparison, compare
from aifx.benchmarking.plots import pictures
from aifx.benchmarking.plots.trend import trend
from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.rug import rug_plot
from aifx.benchmarking.views import headlines, machine
from aifx.core.pages import date, render

MOST_TRENDS = 12
"""Pictures on a page of a history: those that moved first."""

MOST_NOTES = 8
"""Notes that are not folded."""

MOST_OPEN = 12
"""Lines of a table that is not folded at first."""


def report_page(report: Report) -> str:
    """All of it: pictures of what there is, each result, its samples, what it was measured on."""
    print_ = report.fingerprint
    return render(
        "aifx.benchmarking",
        "report.html",
        title=print_.hardware.get("host") or "this machine",
        command=_command(report),
        subtitle=_subtitle(report),
        report=report,
        headlines=headlines(report),
        suites=[(suite, [_row(result) for result in results]) for suite, results in _by_suite(report.results)],
        most_open=MOST_OPEN,
        most_notes=MOST_NOTES,
        fingerprint={
            "hardware": _words(print_.hardware),
            "clocks": _words(print_.clocks),
            "versions": _words(print_.versions),
            "flags": _words(print_.flags),
            "git": _words(print_.git or {}),
        },
        pictures=pictures(report),
    )


def history_page(name: str, reports: Sequence[Report]) -> str:
    """How the results of a name moved from report to report.

    Args:
        reports: one or more, the oldest first.
    """
    reports = sorted(reports, key=lambda report: report.time)
    last = reports[-1]
    like = [report for report in reports if not report.fingerprint.obstacles(last.fingerprint)]
    compared = sorted(compare(like[0], last).results, key=_urgency) if len(like) > 1 else []
    drawn = [
        trend(f"trend-{number}", reports, found.key, f"{units.change(found.change.ratio)}, {found.verdict}")
        for number, found in enumerate(compared[:MOST_TRENDS])
    ]
    return render(
        "aifx.benchmarking",
        "history.html",
        title=name,
        command=f"aifx bench history {name}",
        subtitle=[
            f"{len(reports)} reports, {date(reports[0].time)} to {date(last.time)}",
            *filter(None, [machine(last)]),
        ],
        num_others=len(reports) - len(like),
        pictures=[picture for picture in drawn if picture],
        num_hidden=max(len(compared) - MOST_TRENDS, 0),
        since=f"{like[0].fingerprint.commit or 'the first'}, {date(like[0].time)}",
        rows=[_change_row(found) for found in compared],
        reports=[
            _report_row(report, before) for report, before in reversed([*zip(reports, [None, *reports], strict=False)])
        ],
    )


def _urgency(found: Comparison) -> tuple[int, float]:
    """What got slower first, the most first; then what got faster; then the rest as it was measured."""
    if found.verdict in ("slower", "faster"):
        ratio = found.change.ratio
        return found.verdict == "faster", -abs(log(ratio)) if ratio > 0 else -inf
    return 2, 0.0


def _change_row(found: Comparison) -> dict[str, Any]:
    return {
        "name": found.after.name,
        "params": _words(found.after.params),
        "then": units.duration(found.before.median_s),
        "now": units.duration(found.after.median_s),
        "change": units.change(found.change.ratio),
        "interval": f"{units.change(found.change.low)} to {units.change(found.change.high)}",
        "verdict": found.verdict,
        "why": found.why,
    }


def _report_row(report: Report, before: Report | None) -> dict[str, Any]:
    changed = []
    if before:
        obstacles = [f"another machine: {what}" for what in report.fingerprint.obstacles(before.fingerprint)]
        differences = before.fingerprint.differences(report.fingerprint)
        changed = obstacles + [what for what in differences if not what.startswith("commit:")]
    return {
        "commit": report.fingerprint.commit or "none",
        "time": date(report.time),
        "launches": report.launches,
        "changed": changed,
    }


def _command(report: Report) -> str:
    """What measures the like of it."""
    suites = report.request.suites
    return f"aifx bench {suites[0] if len(suites) == 1 else 'all'}{' --quick' * report.request.quick}"


def _subtitle(report: Report) -> list[str]:
    commit = f", commit {report.fingerprint.commit}" if report.fingerprint.commit else ""
    many = "1 launch" if report.launches == 1 else f"{report.launches} launches"
    quick = "quick, " if report.request.quick else ""
    took = f"{quick}{many}, {units.duration(report.duration_s)}"
    return [*filter(None, [machine(report)]), f"{date(report.time)}; {took}{commit}"]


def _by_suite(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """In the order in which they were measured."""
    suites: dict[str, list[Result]] = {}
    for result in results:
        suites.setdefault(result.suite, []).append(result)
    return list(suites.items())


def _row(result: Result) -> dict[str, Any]:
    """What a line of the table says; empty where it has nothing to say."""
    low, high = result.interval_s
    rates = []
    if result.flops_per_s:
        rates.append(units.rate(result.flops_per_s, "FLOP/s"))
    if result.bytes_per_s:
        rates.append(units.rate(result.bytes_per_s, "B/s"))
    return {
        "name": result.name.partition(".")[2],
        "params": _words(result.params),
        "median": units.duration(result.median_s),
        "interval": f"{units.duration(low)} to {units.duration(high)}",
        "noise": None if result.noise is None else units.share(result.noise),
        "rates": rates,
        "roofline": None if result.roofline_fraction is None else units.share(result.roofline_fraction),
        "fraction": result.roofline_fraction,
        "figures": [
            units.figure(name, value, result.unit) for name, value in result.figures.items() if value is not None
        ],
        "rug": rug_plot(result),
    }


def _words(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: units.param(name, value) for name, value in values.items() if value not in (None, "")}
