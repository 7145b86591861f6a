"""Measuring machines and projects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.verbs.arguments import Settings, StrPath, overrides

if TYPE_CHECKING:
    from aifx.benchmarking.results import Report as BenchReport


def bench(
    *suites: str, project: StrPath = ".", quick: bool = False, launches: int = 1, settings: Settings = None
) -> BenchReport:
    """Measure this machine or a project, and return a report with confidence intervals.

    Args:
        suites: "hardware", "kernels", "train", "data", "checkpoint", "startup". A server is measured by
            `aifx bench serve` alone.
        project: a folder in the project, for the suites that need one.
        quick: measure fewer sizes for a shorter time.
        launches: processes per suite. Three or more say how much launches differ.
        settings: values over those of `aifx.toml`, by key.

    Raises AifxError if a suite fails.

    Example:
        >>> aifx.bench("data", quick=True).find("data.read") is not None
        True
    """
    from aifx.benchmarking import measured_peaks
    from aifx.benchmarking.results import Request
    from aifx.benchmarking.runner import Launches, check_configuration
    from aifx.benchmarking.suites import SUITES

    for suite in suites:
        if suite not in SUITES:
            raise UsageError(f"there is no suite {suite!r}", f"one of: {', '.join(SUITES)}", "aifx bench --help")
    request = Request(suites=list(suites), quick=quick, options={"set": overrides(settings)})
    check_configuration(request, Path(project))
    report = measured_peaks.keep(Launches(request, folder=Path(project)).run(dict.fromkeys(suites, launches)))
    report.raise_failure()
    return report
