"""`aifx bench ls`, `history`: the reports that are kept by name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import AifxError, UsageError, did_you_mean

if TYPE_CHECKING:
    from aifx.benchmarking.results import Report, Result
    from aifx.benchmarking.store import Store

MAIN = ("train.step", "startup.cold", "checkpoint.save", "data.prefetch", "hardware.matmul")
"""The result that represents a report if none is named; otherwise its first."""

CHART = (72, 7)
"""Columns and lines."""

MARGIN = 0.1
"""Of the median, which a picture shows at the least below it and above it."""


@dataclass(frozen=True)
class Baseline:
    """A baseline by its newest report."""

    name: str
    reports: int
    time: float
    commit: str | None
    launches: int
    suites: list[str]


@dataclass(frozen=True)
class BaselineList:
    """What `aifx bench ls --json` prints."""

    folder: str
    baselines: list[Baseline]


@dataclass(frozen=True)
class HistoryPoint:
    """A result in one report. `compares` is false if it was measured on other hardware than the newest."""

    time: float
    commit: str | None
    launches: int
    median_s: float
    interval_s: tuple[float, float]
    compares: bool


@dataclass(frozen=True)
class ResultHistory:
    name: str
    params: dict[str, str | int | float | bool]
    points: list[HistoryPoint]


@dataclass(frozen=True)
class History:
    """What `aifx bench history --json` prints."""

    name: str
    results: list[ResultHistory]


def ls(json: JsonOption = False) -> None:
    """List the saved baselines.

    Examples:
        aifx bench ls
    """
    with terminal(json) as out:
        from aifx.benchmarking.store import open_store, to_save

        store = open_store()
        rows, documents = [], []
        for name in store.names():
            reports = _reports(out, store, name)
            if not reports:
                continue
            newest = reports[-1]
            documents.append(Baseline(name, len(reports), *_point(newest), newest.request.suites))
            rows.append(
                (
                    name,
                    len(reports),
                    _at(newest),
                    newest.fingerprint.commit,
                    _device(newest),
                    " ".join(newest.request.suites),
                )
            )
        out.document(BaselineList(str(store.folder), documents))
        if rows:
            out.table(["baseline", "reports", "newest", "commit", "device", "suites"], rows, right=["reports"])
        else:
            out.print(f"no baselines in {store.folder}: {to_save('main')} keeps one")


def history(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the baseline.")],
    result: Annotated[
        str | None,
        typer.Option("--result", metavar="RESULT", help="Result to show, as tables name it.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write all results to FILE, as a page with plots.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show one result of a baseline, commit by commit.

    Examples:
        aifx bench history main
        aifx bench history main --result train.forward --html trend.html
    """
    with terminal(json) as out:
        from aifx.benchmarking.store import open_store, to_save

        store = open_store()
        reports = _reports(out, store, name)
        if not reports:
            raise UsageError(f"no report of {name} can be read", "each is damaged", to_save(name))
        chosen = _chosen(name, reports, result)
        if html:
            from aifx.benchmarking.page import history_page
            from aifx.core.pages import write_page

            write_page(history_page(name, reports), html)
            out.log(f"written to {html}")
        out.document(History(name, [_series(reports, key) for key in _keys(reports, result)]))
        _show(out, reports, chosen)


def _reports(out: Output, store: Store, name: str) -> list[Report]:
    """The oldest first. One that cannot be read is reported and left out."""
    from aifx.benchmarking.results import read_report

    found = []
    for path in store.history(name):
        try:
            found.append(read_report(path))
        except AifxError as error:
            out.report([error])
    return found


def _chosen(baseline: str, reports: list[Report], name: str | None) -> Result:
    """The newest result of that name in a baseline's reports, or the one that represents the report."""
    newest = {result.key: result for report in reports for result in report.results}
    if name is None:
        known = [result for main in MAIN for result in newest.values() if result.name == main]
        return (known or list(newest.values()))[0]
    for result in newest.values():
        if name in (result.name, result.title, result.key):
            return result
    did = did_you_mean(name, {r.title for r in newest.values()})
    raise UsageError(f"no result {name!r}", did, f"aifx bench show {baseline}")


def _keys(reports: list[Report], name: str | None) -> list[str]:
    """Of all results, or of those of that name."""
    results = {result.key: result for report in reports for result in report.results}
    return [key for key, result in results.items() if name is None or name in (result.name, result.title, key)]


def _series(reports: list[Report], key: str) -> ResultHistory:
    found = [(report, result) for report in reports for result in report.results if result.key == key]
    last = found[-1][1]
    points = [
        HistoryPoint(
            *_point(report),
            result.median_s,
            result.interval_s,
            not report.fingerprint.obstacles(found[-1][0].fingerprint),
        )
        for report, result in found
    ]
    return ResultHistory(last.name, last.params, points)


def _show(out: Output, reports: list[Report], chosen: Result) -> None:
    """One line per report, compared with the one before on the same hardware; then the picture."""
    from aifx.benchmarking import units
    from aifx.benchmarking.estimate import change
    from aifx.commands.console.chart import line_chart

    newest = reports[-1].fingerprint
    rows: list[tuple[object, ...]] = []
    medians: list[float] = []
    before: Result | None = None
    for report in reports:
        result = next((r for r in report.results if r.key == chosen.key), None)
        if result is None:
            rows.append((_at(report), report.fingerprint.commit, None, None, "not measured"))
            continue
        difference = ""
        if obstacles := report.fingerprint.obstacles(newest):
            difference = f"not comparable: {obstacles[0]}"
        else:
            if before is not None:
                found = change(before.samples_s, result.samples_s)
                difference = f"{units.change(found.ratio)}{'' if found.is_significant else ' (not significant)'}"
            before = result
            medians.append(result.median_s)
        noise = None if result.noise is None else f"{result.noise:.1%}"
        rows.append((_at(report), report.fingerprint.commit, units.duration(result.median_s), noise, difference))
    out.print(chosen.title)
    out.table(["time", "commit", "median", "±", "against the one before"], rows, right=["median", "±"])
    if len(medians) > 1:
        out.print("reports are compared by their lower deciles, which little disturbs")
    if len(medians) > 1 and not out.json:
        out.print("")
        scale, unit = _unit(max(medians))
        ascii_only = not (out.out.encoding or "").lower().startswith("utf")
        middle = median(medians) * scale
        reach = (1 - MARGIN) * middle, (1 + MARGIN) * middle  # so that noise does not fill the picture
        for line in line_chart([value * scale for value in medians], *CHART, ascii_only=ascii_only, reach=reach):
            out.print(line)
        out.print(f"{chosen.title} [{unit}], the oldest at the left")


def _unit(seconds: float) -> tuple[float, str]:
    """What a picture's seconds are multiplied by, and what they are then."""
    from aifx.benchmarking.units import TIMES

    for unit, suffix in TIMES:
        if seconds >= unit:
            return 1 / unit, suffix
    return 1e9, "ns"


def _point(report: Report) -> tuple[float, str | None, int]:
    return report.time, report.fingerprint.commit, report.launches


def _at(report: Report) -> str:
    return f"{datetime.fromtimestamp(report.time):%Y-%m-%d %H:%M}"


def _device(report: Report) -> str:
    hardware = report.fingerprint.hardware
    return f"{hardware.get('num_devices', '?')} x {hardware.get('device_kind', '?')}"
