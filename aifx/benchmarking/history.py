"""The saved reports of a name, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aifx.benchmarking.results import Param, Report, Result
from aifx.core.errors import UsageError, did_you_mean

MAIN = ("train.step", "startup.cold", "checkpoint.save", "data.prefetch", "hardware.matmul", "serve.throughput")
"""The result that represents a report if none is named; otherwise its first."""


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
    """Document of `aifx bench ls --json`."""

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
    params: dict[str, Param]
    points: list[HistoryPoint]


@dataclass(frozen=True)
class History:
    """Document of `aifx bench history --json`."""

    name: str
    results: list[ResultHistory]


def select_results(baseline: str, reports: Sequence[Report], name: str | None) -> list[Result]:
    """The newest of each result, of that name if one is given. Raises UsageError if there is none."""
    newest = {result.key: result for report in reports for result in report.results}
    found = [result for result in newest.values() if name is None or name in (result.name, result.title, result.key)]
    if not newest:
        raise UsageError(
            f"{baseline} has no results", "its benches ended before they had any", f"aifx bench show {baseline}"
        )
    if not found:
        similar = did_you_mean(str(name), {result.title for result in newest.values()})
        raise UsageError(f"no result {name!r}", similar, f"aifx bench show {baseline}")
    return found


def main_result(results: Sequence[Result]) -> Result:
    """The result that represents the others."""
    return next((result for main in MAIN for result in results if result.name == main), results[0])


def result_history(reports: Sequence[Report], result: Result) -> ResultHistory:
    """A result in each of the reports that have it, the oldest first."""
    found = [(report, one) for report in reports for one in report.results if one.key == result.key]
    newest, _ = found[-1]
    points = [
        HistoryPoint(
            report.time,
            report.fingerprint.commit,
            report.launches,
            one.median_s,
            one.interval_s,
            compares=not report.fingerprint.obstacles(newest.fingerprint),
        )
        for report, one in found
    ]
    return ResultHistory(result.name, result.params, points)
