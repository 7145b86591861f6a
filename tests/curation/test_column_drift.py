"""Drift of columns: a row count makes no alarm, chance seldom one, and what is there is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aifx.curation.column_drift import ColumnDrift, compare_columns
from aifx.curation.column_samples import comparable
from aifx.curation.drift import ks, psi

PART_DAYS = 1 / 6
"""A part of the week is four hours."""


class Factory:
    """Rows of 50 columns: 30 correlated, 10 with heavy tails or missing numbers, 10 of values, many of them rare."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.mixing = np.random.default_rng(7).standard_normal((3, 30))

    def rows(self, count: int, days: Any = None, shift: float = 0.0) -> dict[str, Any]:
        """With a cycle over the week, if days are given; `shift` is in standard deviations of the first column."""
        draw = self.draw
        common = draw.standard_normal((count, 3))
        numbers = common @ self.mixing / np.sqrt(3) + draw.standard_normal((count, 30))
        numbers /= np.sqrt((self.mixing**2).sum(0) / 3 + 1)
        if days is not None:
            weekend = np.floor(days) % 7 >= 5
            numbers += np.sin(2 * np.pi * days / 7)[:, None] + np.linspace(1, 0, 30) * weekend[:, None]
        numbers[:, 0] += shift * (np.sqrt(1 + 0.5 + 10 / 49) if days is not None else 1)
        columns: dict[str, Any] = {f"n{n}": numbers[:, n] for n in range(30)}
        for n in range(5):
            columns[f"t{n}"] = draw.standard_t(1 + n % 3, count) * np.exp(common[:, 0])
            spent = np.round(np.exp(2 * draw.standard_normal(count) + common[:, 1]), 2)
            columns[f"spent{n}"] = np.where(draw.random(count) < 0.02 * n, np.nan, spent)
        for n in range(10):
            shares = 1 / np.arange(1, 3 + 3 * n) ** 2
            drawn = draw.choice(len(shares), count, p=shares / shares.sum())
            if days is not None:
                drawn = np.where(weekend & (draw.random(count) < 0.5), 0, drawn)
            columns[f"v{n}"] = [str(one) for one in drawn]
        return columns

    def report(self, reference: int, now: int, *, weekly: bool = False, shift: float = 0.0) -> tuple[ColumnDrift, ...]:
        """Eight weeks beside two days and a half of the next."""
        if not weekly:
            return compare_columns(self.rows(reference), self.rows(now, shift=shift))
        old, new = 56 * self.draw.random(reference), 58 + 2.5 * self.draw.random(now)
        parts = tuple(np.floor(days / PART_DAYS).astype(int) % 42 for days in (old, new))
        return compare_columns(self.rows(reference, old), self.rows(now, new, shift), parts)  # type: ignore[arg-type]


def drifted(found: tuple[ColumnDrift, ...]) -> set[str]:
    return {one.column for one in found if one.drifted}


def test_a_week_is_no_drift_and_a_shift_is_one() -> None:
    factory = Factory(1)
    assert drifted(factory.report(4000, 2000, weekly=True)) == set()
    assert drifted(factory.report(4000, 2000, weekly=True, shift=0.2)) == {"n0"}


def test_without_its_parts_a_week_is_drift() -> None:
    factory = Factory(1)
    old, new = 56 * factory.draw.random(2000), 58 + 2.5 * factory.draw.random(1000)
    assert drifted(compare_columns(factory.rows(2000, old), factory.rows(1000, new)))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "reports"), [(300, 400), (3_000, 200), (20_000, 50)])
@pytest.mark.parametrize("weekly", [False, True], ids=["steady", "weekly"])
def test_without_drift_one_report_in_a_hundred_alarms_at_most(rows: int, reports: int, weekly: bool) -> None:
    """The level is 1 in 200: of 400 reports, more than 7 alarm in one test of 1,000, were it just so."""
    factory = Factory(rows)
    alarms = sum(bool(drifted(factory.report(6_000, rows, weekly=weekly))) for _ in range(reports))
    assert alarms <= max(3, reports / 57)


@pytest.mark.slow
@pytest.mark.parametrize("weekly", [False, True], ids=["steady", "weekly"])
def test_a_shift_of_a_fifth_is_found_and_one_of_a_fiftieth_is_not(weekly: bool) -> None:
    factory = Factory(3)
    found = sum("n0" in drifted(factory.report(6_000, 2_000, weekly=weekly, shift=0.2)) for _ in range(100))
    assert found >= 95
    for _ in range(20):
        assert "n0" not in drifted(factory.report(20_000, 20_000, weekly=weekly, shift=0.02))


@pytest.mark.parametrize(
    ("old", "new", "of"),
    [
        (np.ones(5000), np.full(300, 2.0), "numbers"),
        (np.arange(5000.0), np.where(np.arange(300) % 5, np.arange(300) * 16.0, np.nan), "missing"),
        (np.arange(5000.0), np.full(300, np.nan), "missing"),
        (["a", "b"] * 2500, ["a", "b", "new"] * 100, "values"),
        (["a", "b"] * 2500, ["a", "b", None] * 100, "values"),
    ],
    ids=["a constant that changed", "a fifth is missing", "all are missing", "a new value", "missing values"],
)
def test_what_people_look_for_is_found(old: Any, new: Any, of: str) -> None:
    (first, *_) = compare_columns({"x": old}, {"x": new})
    assert (first.of, first.drifted) == (of, True)


def test_names_and_a_constant_are_the_same() -> None:
    names = [f"name {n}" for n in range(300)]
    found = compare_columns({"name": names, "one": np.ones(300)}, {"name": names, "one": np.ones(300)})
    assert {one.column: (round(one.effect, 9), one.drifted) for one in found} == {"name": (0, False), "one": (0, False)}


def test_single_missing_values_hide_no_drift() -> None:
    """In its own scale, one missing value is as rare as a drift can be large."""
    draw = np.random.default_rng(0)
    old, new = ({f"n{n}": draw.normal(size=rows) for n in range(11)} for rows in (5000, 100))
    for name in list(old)[1:]:
        old[name][0] = np.nan
    new["n0"] += 3
    assert drifted(compare_columns(old, new)) == {"n0"}


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        (["0", "1", ""] * 100, [0.0, 1.0, None] * 100, 0),
        (["True", "False"] * 100, [True, False] * 100, 0),
        ([*map(str, range(300))], [*map(float, range(299)), "n/a"], 0),
        ([0, 1] * 100, [0.5] * 200, 1),
        ([0.1 * n for n in range(300)], [7.0] * 300, None),
        (["a", "b"] * 100, [f"id {n}" for n in range(200)], 1),
        (["a"] * 300, [True, 3] * 150, 1),
    ],
    ids=["zeros and ones", "truths", "numbers", "other numbers", "one number", "names", "other types"],
)
def test_a_column_is_what_the_reference_says(old: Any, new: Any, effect: float | None) -> None:
    sides = comparable(old, new)
    assert not isinstance(sides, str)
    found = compare_columns({"x": sides[0]}, {"x": sides[1]})
    largest = max(one.effect for one in found)
    assert largest == pytest.approx(effect, abs=0.02) if effect is not None else largest > 0.3


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (["2026-01-02", "2026-01-03"] * 60, "dates"),
        ([[1], [2]] * 60, "type list"),
        ([np.ones(3)] * 120, "type ndarray"),
    ],
)
def test_what_has_no_comparison_is_named(values: Any, why: str) -> None:
    made = comparable(values, values)
    assert isinstance(made, str)
    assert why in made


def test_the_effect_is_in_standard_deviations() -> None:
    draw = np.random.default_rng(0)
    (found, *_) = compare_columns({"x": draw.normal(7, 3, 20_000)}, {"x": draw.normal(10, 3, 20_000)})
    assert found.effect == pytest.approx(1 / np.sqrt(1.25), abs=0.03)  # the rows of both have a variance of 1.25


def test_drift_is_that_of_the_rows() -> None:
    draw = np.random.default_rng(0)
    old, new = draw.normal(size=5000), draw.normal(0.5, size=4000)
    from scipy.stats import ks_2samp

    assert ks(old, new) == pytest.approx(ks_2samp(old, new).statistic)
    assert psi(np.array([50, 50]), np.array([50, 50])) == 0
    # (0.75 - 0.5) ln 1.5 + (0.25 - 0.5) ln 0.5, with half a row in each bin
    assert psi(np.array([5000, 5000]), np.array([7500, 2500])) == pytest.approx(0.2747, abs=1e-3)
