from __future__ import annotations

import re
from dataclasses import replace

import pytest

from aifx.drills.guarantees import DrillResult, Expected, Measured, judge, report

EXPECTED = Expected(ends=("exit 75",), max_steps_lost=3, state="equal", max_safe_s=5.0)
KEPT = Measured(end="exit 75", steps_lost=3, safe_s=5.0, next_step_s=8.0, state="equal")


def test_what_is_promised_breaks_nothing() -> None:
    assert judge(EXPECTED, KEPT) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"end": "exit 70"}, "exit 70.*exit 75"),
        ({"steps_lost": 4}, "4 steps.* 3"),
        ({"safe_s": 5.1}, r"5\.1 s.*5\.0 s"),
        ({"state": None}, "its end"),
        ({"state": "different"}, "state.*different"),
        ({"faults": ("something else",)}, "^something else$"),
    ],
)
def test_each_thing_that_is_not_as_promised_is_named(change: dict[str, object], reason: str) -> None:
    (found,) = judge(EXPECTED, replace(KEPT, **change))  # type: ignore[arg-type]
    assert re.search(reason, found)


@pytest.mark.parametrize(("verdict", "passed"), [("passed", True), ("not run", True), ("broken", False)])
def test_only_what_is_broken_fails_the_report(verdict: str, passed: bool) -> None:
    results = [DrillResult("kill", "step", "passed", []), DrillResult("kill", "data", verdict, [])]  # type: ignore[arg-type]
    assert report(results, 24, 6, None).passed is passed
