"""Tests that take seconds are those of the table, and the table is of measured seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import seconds
from effort import ROOT
from seconds import ALWAYS_QUICK, LEAST_S, mark_tests_that_take_seconds, read_table, to_record


def test_cases_of_a_test_are_added_up() -> None:
    taken = {"a.py::b[x]": LEAST_S / 2, "a.py::b[y]": LEAST_S / 2, "a.py::c": LEAST_S / 2, ALWAYS_QUICK[0]: 9.0}
    before = {"a.py::b": 8.0, "a.py::c": 8.0, "a.py::left_out": 8.0}
    assert to_record(taken, before) == {"a.py::b": LEAST_S, "a.py::left_out": 8.0}


def test_each_test_of_the_table_is_there() -> None:
    """Renamed ones would be quick again."""
    for test in (*read_table(), *ALWAYS_QUICK):
        path, _, name = test.partition("::")
        assert f"def {name.rpartition('::')[2]}(" in (ROOT / path).read_text(), f"{test} is gone: make test-seconds"


def test_all_cases_are_marked(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = request.node
    (tmp_path / "table").write_text(json.dumps({item.nodeid: 4.0}))
    monkeypatch.setattr(seconds, "TABLE", tmp_path / "table")
    assert item.get_closest_marker("seconds") is None
    mark_tests_that_take_seconds([item])
    assert item.get_closest_marker("seconds") is not None
