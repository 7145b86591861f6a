from __future__ import annotations

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
        ({"end": "exit 70"}, "the disturbed process ended with exit 70, not with exit 75"),
        ({"steps_lost": 4}, "4 steps were lost, more than 3"),
        ({"safe_s": 5.1}, "it took 5.1 s to a safe state, longer than 5.0 s"),
        ({"state": None}, "the run did not get to its end"),
        ({"state": "different"}, "the final state is different, not equal"),
        ({"faults": ("something else",)}, "something else"),
    ],
)
def test_each_thing_that_is_not_as_promised_is_named(change: dict[str, object], reason: str) -> None:
    assert judge(EXPECTED, replace(KEPT, **change)) == [reason]  # type: ignore[arg-type]


@pytest.mark.parametrize(("verdict", "passed"), [("passed", True), ("not run", True), ("broken", False)])
def test_only_what_is_broken_fails_the_report(verdict: str, passed: bool) -> None:
    results = [DrillResult("kill", "step", "passed", []), DrillResult("kill", "data", verdict, [])]  # type: ignore[arg-type]
    assert report(results, 24, 6, None).passed is passed
