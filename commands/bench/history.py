"""`aifx bench ls`, `history`: the reports that are kept by name."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.benchmarking import units
from aifx.commands.bench.compare import local_time
from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import AifxError, UsageError

if TYPE_CHECKING:
    from aifx.benchmarking.results import Report, Result
    from aifx.benchmarking.store import Store

CHART = (72, 7)
"""Columns and lines."""

MARGIN = 0.1
"""Of the median, which a picture shows at the least below it and above it."""


def ls(json: JsonOption = False) -> None:
    """List the saved baselines.

    Examples:
        aifx bench ls
    """
    with terminal(json) as out:
        from aifx.benchmarking.history import Baseline, BaselineList
        from aifx.benchmarking.store import open_store, to_save

        store = open_store()
        rows, baselines = [], []
        for name in store.names():
            reports = _reports(out, store, name)
            if not reports:
                continue
            newest = reports[-1]
            commit, suites, hardware = newest.fingerprint.commit, newest.request.suites, newest.fingerprint.hardware
            device = f"{hardware.get('num_devices', '?')} x {hardware.get('device_kind', '?')}"
            baselines.append(Baseline(name, len(reports), newest.time, commit, newest.launches, suites))
            rows.append((name, len(reports), local_time(newest), commit, device, " ".join(suites)))
        out.document(BaselineList(str(store.folder), baselines))
        if rows:
            out.table(["baseline", "reports", "newest", "commit", "device", "suites"], rows, right=["reports"])
        else:
            out.print(f"no baselines in {store.folder}: {to_save('main')} keeps one")


def history(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the baseline.")],
    result: Annotated[
        str | None, typer.Option("--result", metavar="RESULT", help="Result to show, as tables name it.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write all results to FILE, as a page with plots.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show one result of a baseline, commit by commit.

    Examples:
        aifx bench history main
        aifx bench history main --result train.forward --html trend.html
    """
    with terminal(json) as out:
        from aifx.benchmarking.history import History, main_result, result_history, select_results
        from aifx.benchmarking.store import open_store, to_save

        reports = _reports(out, open_store(), name)
        if not reports:
            raise UsageError(f"no report of {name} can be read", "each is damaged", to_save(name))
        results = select_results(name, reports, result)
        if html:
            from aifx.benchmarking.page import history_page
            from aifx.core.pages import write_page

            write_page(history_page(name, reports), html)
            out.log(f"written to {html}")
        out.document(History(name, [result_history(reports, one) for one in results]))
        _show(out, reports, main_result(results))


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


def _show(out: Output, reports: list[Report], chosen: Result) -> None:
    """One line per report, compared with the one before on the same hardware; then the picture."""
    from aifx.commands.bench.report import ascii_only
    from aifx.commands.console.chart import line_chart

    newest = reports[-1].fingerprint
    rows: list[tuple[object, ...]] = []
    medians: list[float] = []
    before: Result | None = None
    for report in reports:
        result = next((r for r in report.results if r.key == chosen.key), None)
        if result is None:
            rows.append((local_time(report), report.fingerprint.commit, None, None, "not measured"))
            continue
        difference = ""
        if obstacles := report.fingerprint.obstacles(newest):
            difference = f"not comparable: {obstacles[0]}"
        else:
            if before is not None:
                found = result.change_since(before)
                difference = f"{units.change(found.ratio)}{'' if found.is_significant else ' (not significant)'}"
            before = result
            medians.append(result.median_s)
        noise = None if result.noise is None else f"{result.noise:.1%}"
        rows.append((local_time(report), report.fingerprint.commit, units.duration(result.median_s), noise, difference))
    out.print(chosen.title)
    out.table(["time", "commit", "median", "±", "against the one before"], rows, right=["median", "±"])
    if len(medians) < 2 or out.json:
        return
    out.print("reports are compared by their lower deciles, which little disturbs")
    out.print("")
    scale, unit = next((one for one in units.TIMES if max(medians) >= one[0]), units.TIMES[-1])
    middle = median(medians) / scale
    reach = (1 - MARGIN) * middle, (1 + MARGIN) * middle  # so that noise does not fill the picture
    for line in line_chart([value / scale for value in medians], *CHART, ascii_only=ascii_only(out), reach=reach):
        out.print(line)
    out.print(f"{chosen.title} [{unit}], the oldest at the left")
