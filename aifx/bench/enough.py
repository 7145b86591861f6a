"""As many launches as it takes: until a baseline is quiet enough to be one, until a gate can tell.

A quiet machine needs few. On one that is shared a launch may be off by several percent, and what five cannot tell
twenty can: each round doubles what there is, and what was measured before counts along.
"""

from __future__ import annotations

from collections.abc import Callable

from aifx.bench.compare import Gated, gate
from aifx.bench.results import Report, Result
from aifx.bench.store import too_noisy

MOST_LAUNCHES = 20
"""Of one side. Of launches that scatter by 5 % so many still find a slowdown of 10 % (benchmarks/gate_trials.py)."""

More = Callable[[list[Result], int], Report]
"""Launches the suites of these results so many times."""


def until_quiet(report: Report, more: More, max_noise: float, most: int = MOST_LAUNCHES) -> Report:
    """The report, with more launches until it is not too noisy to be a baseline, or has that many."""
    while report.failure is None and report.launches < most and (noisy := too_noisy(report, max_noise)):
        report = report.joined(more(noisy, min(report.launches, most - report.launches)))
    return report


def until_told(
    before: Report,
    after: Report,
    max_regression: float,
    only: tuple[str, ...],
    more: More,
    most: int = MOST_LAUNCHES,
) -> tuple[Report, Gated]:
    """`after` with more launches until no result is in doubt, or it has that many; and the gate's answer."""
    gated = gate(before, after, max_regression, only)
    while after.failure is None and gated.doubtful and after.launches < most:
        doubted = [comparison.after for comparison in gated.doubtful]
        after = after.joined(more(doubted, min(after.launches, most - after.launches)))
        gated = gate(before, after, max_regression, only)
    return after, gated
