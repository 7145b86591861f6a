"""The results of `aifx bench serve` as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aifx.benchmarking.units import duration, figure, param
from aifx.commands.console.output import Output

if TYPE_CHECKING:
    from aifx.benchmarking.results import Result

LATENCIES = ("ttft", "tpot", "itl", "latency")
FIGURES = (
    "units_per_s", "total_units_per_s", "requests_per_s", "goodput_requests_per_s", "goodput_fraction",
    "units_per_joule", "cost_per_million_units", "failed_requests",
)  # fmt: skip
"""Of `serve.throughput`, in the order in which they are shown."""


def show_serving(out: Output, results: Sequence[Result], plus_minus: str) -> None:
    """The latencies of each load by their quantiles, and below them what the server wrote in all."""
    loads: dict[str, list[Result]] = {}
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


def _row(name: str, result: Result) -> tuple[str, ...]:
    tails = (result.figures.get(f"{quantile}_s") for quantile in ("p90", "p99"))
    noise = "-" if result.noise is None else f"{result.noise:.1%}"
    return name, duration(result.median_s), noise, *("-" if tail is None else duration(tail) for tail in tails)


def _figures(throughput: Result) -> list[str]:
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
