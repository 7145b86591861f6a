"""As many launches as it takes: until a baseline is quiet enough to be one, until a gate can decide.

A quiet machine needs few. On one that is shared a launch may be off by several percent, and what five cannot show
twenty can: each round doubles what there is, and what was measured before counts along.
"""

from __future__ import annotations

from collections.abc import Callable

from aifx.benchmarking.compare import Gated, gate
from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.store import too_noisy

MOST_LAUNCHES = 20
"""Most launches of one side. With launches that scatter by 5 %, so many still find a slowdown of 10 %
(benchmarks/gate_trials.py)."""

More = Callable[[list[Result], dict[str, int]], Report]
"""Launches suites so many times more, for the sake of these results; returns all that was measured until then."""


def until_quiet(report: Report, more: More, max_noise: float, most: int = MOST_LAUNCHES) -> Report:
    """The report, with more launches until it is not too noisy to be a baseline, or has that many."""
    return _until(report, lambda report: too_noisy(report, max_noise), more, most)


def until_decided(
    before: Report, after: Report, max_regression: float, only: tuple[str, ...], more: More, most: int = MOST_LAUNCHES
) -> tuple[Report, Gated]:
    """`after` with more launches until no result is inconclusive, or it has that many; and the gate's answer."""

    def asked(after: Report) -> Gated:
        return gate(before, after, max_regression, only)

    after = _until(after, lambda after: [found.after for found in asked(after).inconclusive], more, most)
    return after, asked(after)


def _until(report: Report, unsettled: Callable[[Report], list[Result]], more: More, most: int) -> Report:
    """With as many launches again of the suites that have unsettled results, and so on until there are none."""
    while report.failure is None and (results := unsettled(report)):
        have = {result.suite: report.launches_of(result.suite) for result in results}
        counts = {suite: min(count, most - count) for suite, count in have.items() if count < most}
        grown = more([result for result in results if result.suite in counts], counts) if counts else report
        if all(grown.launches_of(suite) == have[suite] for suite in counts):
            return grown  # there is no more to be had, or the launches left out what they had measured before
        report = grown
    return report
