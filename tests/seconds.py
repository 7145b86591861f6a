"""Tests that take seconds, which `make test` leaves to `make test-slow`.

`make test-seconds` runs all tests but slow ones and writes TABLE: the seconds of each test that takes LEAST_S or more,
of all its cases together. A test that it does not hold counts as quick. With `-k`, no test is left out.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from effort import ROOT

TABLE = ROOT / "tests" / "seconds.json"
LEAST_S = 3.0
ALWAYS_QUICK = ("tests/e2e/test_main_job.py::test_language_model",)
"""One whole path from nothing to an answer stays in `make test`."""

IS_RECORDING = os.environ.get("SECONDS_OF_TESTS") == "1"


def function_of(test: str) -> str:
    """A test's id without its parameters."""
    return test.partition("[")[0]


def read_table() -> dict[str, float]:
    """Seconds by test."""
    table: dict[str, float] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def mark_tests_that_take_seconds(items: Sequence[pytest.Item]) -> None:
    """Add the marker `seconds` to those of TABLE."""
    known = read_table()
    for item in items:
        if function_of(item.nodeid) in known:
            item.add_marker("seconds")


def to_record(seconds: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """The content of TABLE: what was measured, and what is known of tests that a sample left out.

    Args:
        seconds: by the id of a test or of a case.
        before: what TABLE holds.
    """
    total: Counter[str] = Counter()
    for test, taken in seconds.items():
        total[function_of(test)] += taken
    found = {**before, **{test: round(taken, 1) for test, taken in total.items()}}
    return {test: found[test] for test in sorted(found) if found[test] >= LEAST_S and test not in ALWAYS_QUICK}


class Recorder:
    """A plugin that writes TABLE at the end."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        TABLE.write_text(json.dumps(to_record(self._seconds, read_table()), indent=1) + "\n", encoding="utf-8")
