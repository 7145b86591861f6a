"""A bench for people: what matters most, a line a result, pictures in a line, then what is to be known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from aifx.commands.console.chart import bar, shares, sparkline
from aifx.commands.console.output import Output
from aifx.core.plurals import counted
from aifx.core.units import duration, figure, named, param, rate, share, size

if TYPE_CHECKING:
    from aifx.verbs.benchmarks import BenchResult, Measured, Part, Point, Report, Step

BAR = 8
"""Characters of a roofline's share."""

WIDTH = 76

NARROW = 64
"""Columns of a terminal, below which a result has two lines: a table of them would break its words."""

FEW = 3
"""Sizes that still have a line each; more of them are a line of bars on a terminal."""

PARTS = (("blue", "█"), ("yellow", "▓"), ("green", "▒"), ("bright_black", "░"))
ASCII = "#=-."
"""The device's parts of a step, and the rest: with colours, without, and without Unicode."""

LATENCIES = ("ttft", "tpot", "itl", "latency")
FIGURES = (
    "units_per_s", "total_units_per_s", "requests_per_s", "goodput_requests_per_s", "goodput_fraction",
    "units_per_joule", "cost_per_million_units", "failed_requests",
)  # fmt: skip
"""Figures of `serve.throughput`, in the order in which a table lists them."""

GAP = "   "

PLUS_MINUS = ("±", "+-")
"""With Unicode, and without."""


def show_report(out: Output, report: Report) -> None:
    """The report on stdout. Nothing with --json.

    A terminal has bars, and a line for all sizes of a thing; a file or a pipe has a line a result and its figures.
    """
    from aifx.verbs.benchmarks import SPLIT_BY, by_size, headlines, machine, step_of

    if out.json:
        return
    host, devices = report.fingerprint.hardware.get("host"), machine(report)
    if where := ": ".join(filter(None, (host, devices))):
        out.print(where)
    if lines := headlines(report):
        _folded(out, [f"{label} {value}" for label, value in lines])
    if where or lines:
        out.print("")
    for suite in report.request.suites:
        results = [result for result in report.results if result.suite == suite]
        if not results:
            continue
        if suite == "serve":
            show_serving(out, results, PLUS_MINUS[ascii_only(out)])
            out.print("")
            continue
        if suite == "train" and (step := step_of(report)):
            _bar_of_parts(out, step)
        series = {}
        if out.out.is_terminal:
            found = {(name, label): points for name in SPLIT_BY for label, points in by_size(results, name).items()}
            series = {names: points for names, points in found.items() if len(points) > FEW}
        in_series = {point.result.key for points in series.values() for point in points}
        _table(out, suite, [result for result in results if result.key not in in_series])
        _by_size(out, series)
        out.print("")
    if not report.results:
        out.print("nothing was measured")
    for note in report.notes:
        out.print(f"note: {note}")
    if failure := report.failure:
        out.print(f"not whole: {': '.join(filter(None, (failure.what, failure.why)))}")


def show_serving(out: Output, results: Sequence[BenchResult], plus_minus: str) -> None:
    """The latencies of each load by their quantiles, and below them what the server wrote in all."""
    loads: dict[str, list[BenchResult]] = {}
    for result in results:
        loads.setdefault(" ".join(f"{name} {param(name, value)}" for name, value in result.params.items()), []).append(
            result
        )
    for load, alike in loads.items():
        found = {result.name.partition(".")[2]: result for result in alike}
        if "start" in found:
            out.print(f"start: {duration(found['start'].median_s)} until the server took requests")
        rows = [_row(name, found[name]) for name in LATENCIES if name in found]
        if rows:
            out.table([load, "p50", plus_minus, "p90", "p99"], rows, right=["p50", plus_minus, "p90", "p99"])
        if (throughput := found.get("throughput")) is not None:
            for line in _wrapped(_figures(throughput), out.out.width if out.out.is_terminal else 80):
                out.print(line)


def _row(name: str, result: BenchResult) -> tuple[str, ...]:
    tails = (result.figures.get(f"{quantile}_s") for quantile in ("p90", "p99"))
    noise = "-" if result.noise is None else f"{result.noise:.1%}"
    return name, duration(result.median_s), noise, *("-" if tail is None else duration(tail) for tail in tails)


def _figures(throughput: BenchResult) -> list[str]:
    found = []
    for name in FIGURES:
        if (value := throughput.figures.get(name)) is not None and not (name == "failed_requests" and not value):
            words, text = figure(name, value, throughput.unit)
            source = throughput.sources.get(name)
            found.append(f"{words} {text}{f' ({source})' if source else ''}")
    return found


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    """Lines of these, none of them broken."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= width:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return lines


def line_of(found: Measured) -> str:
    """Format a result of one launch, which is reported while others follow."""
    from statistics import median

    return f"{found.title}: {duration(median(found.samples_s))}, {counted(len(found.samples_s), 'sample')}"


def _table(out: Output, suite: str, results: Sequence[BenchResult]) -> None:
    """One line per result. On a terminal, results of one name are under it, and under what all of them share. Empty
    columns are left out."""
    from aifx.verbs.benchmarks import shared_params

    if not results:
        return
    rows: list[tuple[str, ...]] = []
    groups: dict[str, list[BenchResult]] = {}
    for result in results:
        groups.setdefault(result.name.partition(".")[2], []).append(result)
    for name, alike in groups.items():
        is_grouped = out.out.is_terminal and len(alike) > 1
        shared = shared_params(alike) if is_grouped else {}
        if is_grouped:
            rows.append((named(name, shared), "", "", "", ""))
        for result in alike:
            own = {key: value for key, value in result.params.items() if key not in shared}
            label = f"  {named('', own).strip()}" if is_grouped else named(name, own)
            noise = "-" if result.noise is None else f"{result.noise:.1%}"
            rows.append((label, duration(result.median_s), noise, _rate(result), _roofline(out, result)))
    if _is_narrow(out):
        _two_lines(out, suite, rows)
        return
    columns = [suite, "median", PLUS_MINUS[ascii_only(out)], "rate", "roofline"]
    used = [i for i in range(len(columns)) if i < 3 or any(row[i] for row in rows)]
    # The roofline has a bar on a terminal.
    right = {columns[i] for i in used} - {suite, *(["roofline"] if out.out.is_terminal else [])}
    out.table([columns[i] for i in used], [[row[i] for i in used] for row in rows], right=right)


def _two_lines(out: Output, heading: str, rows: Sequence[Sequence[str]]) -> None:
    """The name of each result, and its figures in the line below."""
    used = [word for i, word in ((3, "rate"), (4, "(of roofline)")) if any(row[i] for row in rows)]
    out.print(f"{heading}: median{', ' * bool(used)}{' '.join(used)}")
    for label, middle, noise, reached, share_of in rows:
        out.print(label)
        if middle:
            rates = " ".join(filter(None, (reached, share_of and f"({share_of})")))
            spread = "" if noise == "-" else f" {PLUS_MINUS[ascii_only(out)]}{noise}"
            indent = " " * (len(label) - len(label.lstrip()) + 2)
            out.print(f"{indent}{middle}{spread}{', ' * bool(rates)}{rates}")


def _rate(result: BenchResult) -> str:
    if result.flops_per_s:
        return rate(result.flops_per_s, "FLOP/s")
    return rate(result.bytes_per_s, "B/s") if result.bytes_per_s else ""


def _roofline(out: Output, result: BenchResult) -> str:
    """The share of it, on a terminal with a bar."""
    if result.roofline_fraction is None:
        return ""
    text = share(result.roofline_fraction)
    if not out.out.is_terminal or _is_narrow(out):
        return text
    return f"{bar(result.roofline_fraction, BAR, ascii_only=ascii_only(out)):{BAR}} {text:>6}"


def _by_size(out: Output, series: Mapping[tuple[str, str], Sequence[Point]]) -> None:
    """A line a series: the bars, and what the best and the largest size reach; of collectives the bus bandwidth."""
    rows = []
    for (result_name, label), points in series.items():
        name = result_name.partition(".")[2]
        unit = "FLOP/s" if name == "matmul" else "B/s"
        best = max(points, key=lambda point: point.y)
        top, end = (
            f"{rate(point.y, unit)} at {f'{point.x:g}' if name == 'matmul' else size(point.x)}"
            for point in (best, points[-1])
        )
        bars = sparkline([point.y for point in points], ascii_only=ascii_only(out))
        of = f"{label} (bus)" if name == "collective" else label
        rows.append((f"{name} {of}".strip(), bars, top, "" if best is points[-1] else end))
    if not rows:
        return
    out.print("")
    if not _is_narrow(out):
        out.table(["by size", "", "best", "largest"], rows)
        return
    for name, bars, top, end in rows:
        out.print(f"{name} {bars}")
        out.print(f"  best {top}")
        if end:
            out.print(f"  largest {end}")


def _bar_of_parts(out: Output, step: Step) -> None:
    """One bar of all parts, and under it what they are, and what the host does beside them."""
    from rich.text import Text

    def describe(parts: Sequence[Part]) -> list[str]:
        return [f"{part.name} {duration(part.seconds)} ({share(part.fraction)})" for part in parts]

    words, beside = describe(step.parts), describe(step.beside)
    over = f"the parts, one by one, take {duration(step.over_s)} longer" if step.over_s else ""
    if not out.out.is_terminal:
        host = f"the host meanwhile: {', '.join(beside)}" if beside else ""
        parts = "; ".join(filter(None, (", ".join(words), over, host)))
        out.print(f"step {duration(step.whole_s)}: {parts}")
        out.print("")
        return
    whole = max(sum(part.fraction for part in step.parts), 1.0)
    widths = shares([part.fraction / whole for part in step.parts], min(WIDTH, out.out.width))
    if ascii_only(out):
        marks = ASCII
    else:
        marks = "█" * len(PARTS) if out.out.color_system else "".join(mark for _, mark in PARTS)
    styles = [style for style, _ in PARTS]
    out.print(Text.assemble(*((marks[i] * width, styles[i]) for i, width in enumerate(widths))))
    _folded(out, words, [(marks[i], styles[i]) for i in range(len(words))])
    if over:
        out.print(over)
    if beside:
        _folded(out, ["the host meanwhile:", *beside])
    out.print("")


def _folded(out: Output, words: Iterable[str], marks: Sequence[tuple[str, str]] = ()) -> None:
    """Beside each other, none of them broken at the end of a line."""
    from rich.text import Text

    if not out.out.is_terminal:
        out.print(", ".join(words))
        return
    line = Text()
    for number, word in enumerate(words):
        item = Text.assemble((f"{marks[number][0]} ", marks[number][1]), word) if marks else Text(word)
        if line and line.cell_len + len(GAP) + item.cell_len > out.out.width:
            out.print(line)
            line = Text()
        line = Text.assemble(line, GAP if line else "", item)
    out.print(line)


def _is_narrow(out: Output) -> bool:
    return out.out.is_terminal and out.out.width < NARROW


def ascii_only(out: Output) -> bool:
    return not (out.out.encoding or "").lower().startswith("utf")
