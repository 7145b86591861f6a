"""The step of times, the calendar's tokens, and seasons."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest

from aifx.data.time_grid import DAY, Calendar, TimeGrid, calendar_of, infer_grid, parse_parts, parse_time


def times(first: str, count: int, step: int, unit: str) -> np.ndarray:
    return (np.datetime64(first, unit) + step * np.arange(count)).astype("M8[us]")


def month_ends(count: int) -> np.ndarray:
    return times("2001-02", count, 1, "M").astype("M8[D]").astype("M8[us]") - np.timedelta64(1, "D")


@pytest.mark.parametrize(
    ("found", "name", "seasons"),
    [
        (times("2001-01-01", 50, 1, "D"), "1 day", (7, 364)),
        (np.delete(times("2001-01-01", 50, 1, "D"), [3, 4, 5, 20]), "1 day", (7, 364)),
        (times("2001-01-01", 50, 7, "D"), "7 days", (52,)),
        (times("2001-01-01T10:15", 50, 15, "m"), "15 minutes", (96, 672)),
        (times("2001-01-01T10", 50, 1, "h"), "1 hour", (24, 168)),
        (times("2001-01-01T10:00:00", 50, 7, "s"), "7 seconds", (86_400,)),
        (times("2001-01", 50, 1, "M"), "1 month", (12,)),
        (times("2001-01", 50, 3, "M"), "3 months", (4,)),
        (month_ends(50), "1 month", (12,)),
        (times("2001", 20, 1, "Y"), "12 months", (1,)),
    ],
)
def test_the_step_is_inferred(found: np.ndarray, name: str, seasons: tuple[int, ...]) -> None:
    grid = infer_grid([found[:20], found[10:]])
    assert str(grid) == name
    assert grid.seasons == seasons
    places, is_on = grid.places(found)
    assert is_on.all()
    assert places[0] == 0
    np.testing.assert_array_equal(grid.times(places), found)


def test_a_time_between_two_steps_is_known() -> None:
    grid = infer_grid([times("2001-01-01", 9, 1, "D")])
    places, is_on = grid.places(np.array(["2001-01-03T00:00", "2001-01-03T01:00"], "M8[us]"))
    assert (places.tolist(), is_on.tolist()) == ([2, 2], [True, False])
    with pytest.raises(ValueError, match="two rows"):
        infer_grid([times("2001-01-01", 1, 1, "D")])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1988-12-31", datetime(1988, 12, 31)),
        (" 1988-12-31 23:30 ", datetime(1988, 12, 31, 23, 30)),
        ("1988-12-31T23:30Z", datetime(1988, 12, 31, 23, 30)),
        ("1988-12-31T23:30+02:00", datetime(1988, 12, 31, 21, 30)),
        ("1988-12", datetime(1988, 12, 1)),
        ("1988", datetime(1988, 1, 1)),
        ("1988 Q4", datetime(1988, 10, 1)),
        ("1988q1", datetime(1988, 1, 1)),
        ("1988-Q2", datetime(1988, 4, 1)),
        (1988, datetime(1988, 1, 1)),
        (date(1988, 12, 31), datetime(1988, 12, 31)),
        (datetime(1988, 12, 31, 1, tzinfo=timezone(timedelta(hours=1))), datetime(1988, 12, 31)),
        (datetime(1988, 12, 31, tzinfo=UTC), datetime(1988, 12, 31)),
    ],
)
def test_times_of_a_file(value: object, expected: datetime) -> None:
    assert parse_time(value) == expected


@pytest.mark.parametrize("value", ["", "now", "12/31/1988", "1988-13-01", "1988 Q5", "NaT", 88, True, None, 3.5])
def test_what_is_no_time(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a time|NoneType|bool|float"):
        parse_time(value)


def test_times_of_several_columns() -> None:
    assert parse_parts(["1988", "2", "29"]) == datetime(1988, 2, 29)
    assert parse_parts([1988, 2]) == datetime(1988, 2, 1)
    assert parse_parts(["1988"]) == datetime(1988, 1, 1)
    assert parse_parts(["1988", "2", "29", "23"]) == datetime(1988, 2, 29, 23)
    with pytest.raises(ValueError, match="day"):
        parse_parts(["1989", "2", "29"])


def test_each_feature_has_tokens_of_its_own() -> None:
    for found, steps in ((times("2001-01-01", 30, 1, "h"), 20_000), (times("2001-01-01", 30, 1, "D"), 1000)):
        calendar = calendar_of(infer_grid([found]), steps)
        three_years = calendar.grid.times(np.arange(3 * 366 * DAY // calendar.grid.step))
        tokens = calendar.tokens(three_years)
        assert tokens.dtype == np.int32
        assert tokens.min() == 0
        assert tokens.max() < calendar.vocab_size
        ends = tokens.max(axis=0)
        assert (tokens.min(axis=0)[1:] > ends[:-1]).all()


def test_holidays_have_tokens() -> None:
    """Labor Day is one token, Thanksgiving and Memorial Day are two each; days beside them have others."""
    grid = TimeGrid("1969-01-01", DAY, "microseconds")
    days = grid.times(np.arange(7305))
    tokens = Calendar(grid, ("weekday_of_month",)).tokens(days)[:, 0]
    dates = [day.astype("M8[D]").astype(date) for day in days]
    weekdays = np.array([d.weekday() for d in dates])

    def of(is_holiday: object) -> set[int]:
        return set(tokens[np.array([is_holiday(d) for d in dates])].tolist())  # type: ignore[operator]

    labor = of(lambda d: d.month == 9 and d.weekday() == 0 and d.day <= 7)
    thanks = of(lambda d: d.month == 11 and d.weekday() == 3 and 22 <= d.day <= 28)
    memorial = of(lambda d: d.month == 5 and d.weekday() == 0 and d.day >= 25)
    assert [len(found) for found in (labor, thanks, memorial)] == [1, 2, 2]
    for found in (labor, thanks, memorial):
        months = {d.month for d, token in zip(dates, tokens, strict=True) if token in found}
        assert len(months) == 1
        assert sum(token in found for token in tokens) == 20  # once a year
        assert len(set(weekdays[np.isin(tokens, list(found))])) == 1


def test_a_short_training_learns_no_days_of_the_year() -> None:
    day = infer_grid([times("2001-01-01", 30, 1, "D")])
    assert calendar_of(day, 700).features == ("weekday",)
    assert calendar_of(day, 800).features == ("weekday", "day_of_year", "weekday_of_month")
    week = infer_grid([times("2001-01-01", 30, 7, "D")])
    assert (calendar_of(week, 50).features, calendar_of(week, 150).features) == ((), ("week_of_year",))
    month = infer_grid([times("2001-01", 30, 1, "M")])
    assert (calendar_of(month, 23).features, calendar_of(month, 24).features) == ((), ("month",))
    hour = infer_grid([times("2001-01-01", 30, 1, "h")])
    assert calendar_of(hour, 100).features == ("time_of_day", "time_of_week", "weekday")
    assert calendar_of(hour, 100).vocab_size == 24 + 168 + 7
    assert Calendar(month, ()).tokens(times("2001-01", 3, 1, "M")).shape == (3, 0)
