from __future__ import annotations

import re
from dataclasses import replace

import pytest

from aifx.drills.guarantees import DrillResult, Expected, Measured, State, Verdict, judge, judged, passed

EXPECTED = Expected(ends=("exit 75",), resumed_from=6, max_steps_lost=3, state="equal", max_safe_s=5.0)
KEPT = Measured(end="exit 75", resumed_from=6, steps_lost=3, safe_s=5.0, next_step_s=8.0, state="equal")


def test_what_is_promised_breaks_nothing() -> None:
    assert judge(EXPECTED, KEPT) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"end": "exit 70"}, "exit 70.*exit 75"),
        ({"resumed_from": 0}, "nothing.* 6"),
        ({"resumed_from": 3}, "step 3.* 6"),
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


def test_what_resumed_from_nothing_shows_nothing() -> None:
    def verdict(resumed_from: int | None, state: State = "equal") -> Verdict:
        expected = replace(EXPECTED, resumed_from=resumed_from)
        return judged("kill", "step", expected, replace(KEPT, resumed_from=resumed_from, state=state)).verdict

    assert (verdict(6), verdict(None), verdict(0)) == ("passed", "passed", "not shown")  # None: it went on by itself
    assert verdict(0, "different") == "broken"


@pytest.mark.parametrize(
    ("verdicts", "of_named", "of_all"),
    [
        (("passed", "passed"), True, True),
        (("passed", "not run"), False, True),
        (("not run", "not run"), False, False),
        (("passed", "not shown"), False, False),
        (("passed", "broken"), False, False),
    ],
)
def test_only_of_all_drills_some_may_not_run(verdicts: tuple[Verdict, ...], of_named: bool, of_all: bool) -> None:
    results = [DrillResult("kill", "step", verdict, []) for verdict in verdicts]
    assert (passed(results, is_all=False), passed(results, is_all=True)) == (of_named, of_all)
