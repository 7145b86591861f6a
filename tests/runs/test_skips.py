"""The batches that a ledger names, whole or damaged."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aifx.runs.reading import find_skips

SKIP = {"event": "skip", "step": 5, "batch": 4, "reason": "non_finite"}
ROLLBACK = {"event": "rollback", "from_step": 9, "to_step": 4, "step": 8, "batches": [7, 8], "reason": "spike"}


def test_what_a_ledger_names() -> None:
    found = find_skips([{"event": "start"}, SKIP, ROLLBACK, {"event": "resume"}])
    assert found.left_out == (7, 8)
    assert found.reasons.keys() == {4, 7, 8}
    assert re.search(r"step 5 .*non_finite", found.reasons[4])
    assert re.search(r"step 9 .*spike", found.reasons[7])
    assert found.reasons[8] == found.reasons[7]
    assert find_skips([SKIP, ROLLBACK, {"event": "start"}]).left_out == ()


@pytest.mark.parametrize("value", [None, "x", [[1]], {}, True, -1, 1.5, 10**400, ["a", 7, -1]])
def test_a_damaged_line_hides_no_other(value: Any) -> None:
    for damaged in ({"event": "skip", "batch": value}, {"event": "rollback", "batches": value}, {"event": value}):
        found = find_skips([damaged, SKIP, ROLLBACK])
        assert found.left_out == (7, 8)
        assert set(found.reasons) == {4, 7, 8}
