"""`aifx bench show`, `compare`, `gate`, `ls` and `history`: saved reports, and comparisons of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core import units
from aifx.core.errors import UsageError
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.verbs.benchmarks import BenchResult, Compared, Comparison, Gated, Report

OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="RESULT", help="Compare only results of this name. Can be repeated."),
]

OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Also write the report to FILE, as JSON.")
]

CHART = (72, 7)
"""Columns and lines."""

MARGIN = 0.1
"""Share of the median that a chart shows below it and above it, or more."""


def show(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[REPORT]", help="Report to show: NAME, NAME@COMMIT or a file. By default the last one."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a saved report, or the last one.

    Examples:
        aifx bench show
        aifx bench show main
    """
    with terminal(json) as out:
        from aifx.commands.bench.report import show_report
        from aifx.verbs.benchmarks import bench_show

        report = bench_show(what)
        out.result(report)
        out.print(_made(report))
        show_report(out, report)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="First report: NAME, NAME@COMMIT or a file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Second report.")],
    only: OnlyOption = None,
    json: JsonOption = False,
) -> None:
    """List the results that are slower or faster in B than in A.

    Exit 0: compared, with any result; 2: a report cannot be read, or the two cannot be compared.

    Examples:
        aifx bench compare main now.json
        aifx bench compare main@3f2a9c1d main
    """
    with terminal(json) as out:
        from aifx.verbs.benchmarks import bench_compare

        pair = bench_compare(a, b, only=only or ())
        out.result(pair)
        _show_compared(out, pair.before, pair.after, a, b, pair.compared)


def gate(
    baseline: Annotated[str, typer.Option("--baseline", metavar="NAME", help="Baseline: NAME, NAME@COMMIT or a file.")],
    max_regression: Annotated[
        str, typer.Option("--max-regression", metavar="SHARE", help="Maximum slowdown of a result.")
    ] = "5%",
    max_launches: Annotated[
        int, typer.Option("--max-launches", min=5, max=100, metavar="N", help="Maximum number of launches per suite.")
    ] = 20,
    only: OnlyOption = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="Check this report instead of measuring.")
    ] = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Measure again what a baseline measured, and fail if a result is slower.

    A result has regressed if its slowdown exceeds both --max-regression and the noise. Exit 0: no regression; 1: a
    regression; 2: the reports cannot be compared, or aifx could not measure.

    Examples:
        aifx bench gate --baseline main --max-regression 5%
        aifx bench gate --baseline main --only train.step
        aifx bench train --output now.json --launches 5
        aifx bench gate --baseline main --results now.json
    """
    with terminal(json) as out, sigterm_as_ctrl_c():
        from aifx.commands.bench.report import line_of
        from aifx.verbs.benchmarks import bench_gate

        bound = read_share(max_regression, "--max-regression")
        verdict = bench_gate(
            baseline,
            max_regression=bound,
            max_launches=max_launches,
            only=only or (),
            results=results,
            output=output,
            on_measured=lambda measured: out.log(f"  {line_of(measured)}"),
        )
        out.result(verdict)
        before, after, gated = verdict.before, verdict.after, verdict.gated
        _show_compared(out, before, after, baseline, verdict.source, gated.compared)
        if gated.regressed:  # what may be why; the verdict comes last
            for name, report in ((baseline, before), (verdict.source, after)):
                for note in report.notes:
                    out.print(f"note ({name}): {note}")
        _show_verdict(out, gated)


def ls(json: JsonOption = False) -> None:
    """List the saved baselines.

    Examples:
        aifx bench ls
    """
    with terminal(json) as out:
        from aifx.verbs.benchmarks import bench_ls

        saved = bench_ls(on_fault=lambda error: out.report([error]))
        out.result(saved)
        rows = []
        for one, newest in zip(saved.baselines, saved.newest, strict=True):
            hardware = newest.fingerprint.hardware
            device = f"{hardware.get('num_devices', '?')} x {hardware.get('device_kind', '?')}"
            rows.append((one.name, one.reports, local_time(newest), one.commit, device, " ".join(one.suites)))
        if rows:
            out.table(["baseline", "reports", "newest", "commit", "device", "suites"], rows, right=["reports"])
        else:
            out.print(f"no baselines in {saved.folder}: {saved.to_save} keeps one")


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
        from aifx.verbs.benchmarks import bench_history

        found = bench_history(name, result=result, html=html, on_fault=lambda error: out.report([error]))
        out.result(found)
        _show_history(out, found.reports, found.main)


def _made(report: Report) -> str:
    """When, of which commit, how often."""
    launches = counted(report.launches, "launch", "es")
    return f"{local_time(report)}, {report.fingerprint.commit or 'no commit'}, {launches}"


def local_time(report: Report) -> str:
    return f"{datetime.fromtimestamp(report.time):%Y-%m-%d %H:%M}"


def _show_compared(out: Output, before: Report, after: Report, a: str, b: str, compared: Compared) -> None:
    """The two reports, the table, then what is to be known of it."""
    from aifx.verbs.benchmarks import SIGNIFICANCE

    for mark, name, report in (("A", a, before), ("B", b, after)):
        out.print(f"{mark}  {name}: {_made(report)}")
        if report.failure:
            out.print(f"   not whole: {report.failure.what}")
    out.print("")
    _table(out, compared.results)
    out.print("")
    out.print(f"A and B are medians; change and p go by {_basis(compared)}")
    for line in compared.one_sided_lines:
        out.print(line)
    if compared.differences:
        out.print(f"differs: {'; '.join(compared.differences)}")
    judged = sum(found.change.p is not None for found in compared.results)
    if judged * 2 * SIGNIFICANCE >= 1:
        chance = round(judged * 2 * SIGNIFICANCE)
        out.print(f"of {judged} results that did not change, {chance} would be called slower or faster by chance")


def _basis(compared: Compared) -> str:
    """Name the quantiles by which launches are compared."""
    from aifx.verbs.benchmarks import MIDDLE

    if all(found.after.compared_at == MIDDLE for found in compared.results):
        return "medians of the requests"
    requests = any(found.after.compared_at == MIDDLE for found in compared.results)
    return f"lower deciles, which little disturbs{', or medians of requests' * requests}"


def _table(out: Output, results: list[Comparison]) -> None:
    """A line a result; on a terminal that is too narrow for it two, where a table would break its words."""
    from rich.text import Text

    columns = ["result", "A", "B", "change", "95 % interval", "p", "verdict"]
    rows = []
    for found in results:
        seen, times = found.change, [units.duration(one.median_s) for one in (found.before, found.after)]
        interval = f"{units.change(seen.low)} to {units.change(seen.high)}"
        p = "-" if seen.p is None else f"{seen.p:.4f}"
        verdict = f"{found.verdict}: {found.why}" if found.why else found.verdict
        rows.append((found.after.title, *times, units.change(seen.ratio), interval, p, verdict))
    width = sum(max(map(len, cells)) + len("  ") for cells in zip(columns, *rows, strict=True))
    if not out.out.is_terminal or width <= out.out.width:
        out.table(columns, rows, right=columns[1:6])
        return
    for name, before, after, change, interval, p, verdict in rows:
        chance = "" if p == "-" else f", p {p}"
        word, _, why = verdict.partition(": ")
        out.print(Text(name))
        text = f"{word}, {change} ({interval}{chance}): A {before}, B {after}{'; ' * bool(why)}{why}"
        out.row(Text("  "), Text(text))


def _show_verdict(out: Output, gated: Gated) -> None:
    for found in gated.suspected:
        p, count = found.change.p or 0.0, len(gated.compared.results)
        out.print(f"not counted: {found.after.title} seems slower (p {p:.4f}), as one of {count} may by chance")
    for found in gated.inconclusive:
        if found not in gated.suspected:
            out.print(f"inconclusive: {found.after.title} seems slower by {_reach(found)}, and may be so by chance")
    if unsure := sum(found.verdict == "unsure" for found in gated.compared.results):
        out.print(f"too noisy to say: {unsure} of {len(gated.compared.results)}")
    for found in gated.regressed:
        out.print(f"regression: {found.after.title} is slower by {_reach(found)}")
    if not gated.regressed:
        out.print(f"passed: nothing is slower by more than {gated.max_regression:.1%}, as far as these launches show")


def _reach(found: Comparison) -> str:
    change = found.change
    p = "" if change.p is None else f"; p {change.p:.4f}"
    return f"{change.ratio - 1:.1%} (95 %: {units.change(change.low)} to {units.change(change.high)}{p})"


def _show_history(out: Output, reports: Sequence[Report], chosen: BenchResult) -> None:
    """One line per report, compared with the one before on the same hardware; then the picture."""
    from aifx.commands.bench.report import ascii_only
    from aifx.commands.console.chart import line_chart

    newest = reports[-1].fingerprint
    rows: list[tuple[object, ...]] = []
    medians: list[float] = []
    before: BenchResult | None = None
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


def read_share(text: str, option: str) -> float:
    """Return "5%" or "0.05" as 0.05. Raises UsageError for 5, which means 5 % and not 500 %."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 < number < (1000 if text.endswith("%") else 1):
        hint = f"{option} {text}%" if text.isdigit() and number else f"{option} 5%"
        raise UsageError(f"{option} {text} is not a share", "a share is above 0, such as 5% or 0.05", hint)
    return number / 100 if text.endswith("%") else number
