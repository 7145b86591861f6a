from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifx.commands.console.chart import line_chart

VALUES = st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=60)


@given(VALUES, st.integers(0, 80), st.integers(0, 12), st.booleans())
def test_always_the_size_that_was_asked_for(
    values: list[float | None], width: int, height: int, ascii_only: bool
) -> None:
    lines = line_chart(values, width, height, ascii_only=ascii_only)
    assert len(lines) == height
    assert all(len(line) == width for line in lines)
    if ascii_only:
        assert "".join(lines).isascii()


def test_a_falling_line_falls() -> None:
    lines = line_chart([float(10 - i) for i in range(10)], 40, 5, ascii_only=True)
    starts = [line.index("*") for line in lines]
    assert starts == sorted(starts)
    assert lines[0].split("|")[0].strip() == "10"
    assert lines[-1].split("|")[0].strip() == "1"


def test_gaps_stay_empty() -> None:
    chart = line_chart([1.0, None, math.nan, None, 1.0], 30, 1, ascii_only=True)[0].split("|")[1]
    assert chart.strip("*").strip() == ""
    assert " " in chart


@pytest.mark.parametrize("value", [0.0, -1e308, 5.0])
def test_a_flat_line_is_drawn(value: float) -> None:
    assert sum("*" in line for line in line_chart([value] * 20, 40, 3, ascii_only=True)) == 1


def test_large_spans_do_not_overflow() -> None:
    line_chart([-1.7e308, 1.7e308], 40, 5)
