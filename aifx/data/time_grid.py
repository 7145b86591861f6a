"""Regular times: the step between rows, the numbers that the calendar gives a time, and its seasons.

Times are NumPy's datetime64[us] without a zone; those with one are taken as UTC.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

import numpy as np

from aifx.core.plurals import counted
from aifx.data.columns import as_date, as_text

SECOND = 1_000_000  # microseconds
MONTH = np.timedelta64(1, "M")
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
MIN_YEARS = 2
"""A model learns what a day of the year does only from a training of so many years: of one, it would learn by heart."""

_MONTH = re.compile(r"\d{4}(-\d{2})?")
_QUARTER = re.compile(r"(\d{4})[- ]?Q([1-4])", re.IGNORECASE)


@dataclass(frozen=True)
class TimeGrid:
    """Times that are a step apart. A time's place is its number of steps from `origin`."""

    origin: str  # ISO 8601
    step: int
    unit: Literal["microseconds", "months"]

    def places(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each time, and whether it is a whole number of steps from the origin."""
        origin = np.datetime64(self.origin, "us")
        if self.unit == "months":
            steps = times.astype("M8[M]").astype(np.int64) - origin.astype("M8[M]").astype(np.int64)
        else:
            steps = (times - origin).astype(np.int64)
        return steps // self.step, steps % self.step == 0

    def times(self, places: np.ndarray) -> np.ndarray:
        """The times of places, datetime64[us]. A grid of month ends has month ends."""
        origin = np.datetime64(self.origin, "us")
        if self.unit == "microseconds":
            return origin + places.astype(np.int64) * np.timedelta64(self.step, "us")
        first = origin.astype("M8[M]")
        day, length = _days_of_month(first, origin.astype("M8[D]"))
        months = first + places.astype(np.int64) * self.step * MONTH
        _, lengths = _days_of_month(months, months)
        days = lengths - 1 if day == length - 1 else np.minimum(lengths - 1, day)
        times: np.ndarray = months.astype("M8[us]") + days.astype("m8[D]") + (origin - origin.astype("M8[D]"))
        return times

    def __str__(self) -> str:
        if self.unit == "months":
            return counted(self.step, "month")
        names = {DAY: "day", HOUR: "hour", MINUTE: "minute", SECOND: "second", 1: "microsecond"}
        size = next(size for size in names if self.step % size == 0)
        return counted(self.step // size, names[size])

    @property
    def seasons(self) -> tuple[int, ...]:
        """After how many steps values may repeat: days, weeks, years of whole weeks. (1,) if no season is known."""
        if self.unit == "months":
            found = [12 // self.step] if 12 % self.step == 0 else []
        elif self.step < DAY:
            found = [period // self.step for period in (DAY, 7 * DAY) if period % self.step == 0]
        else:
            found = [period * DAY // self.step for period in (7, 364) if period * DAY % self.step == 0]
        return tuple(steps for steps in found if steps > 1) or (1,)


def infer_grid(series: Sequence[np.ndarray]) -> TimeGrid:
    """The grid of the times of several series: months, or the most frequent step.

    Raises ValueError if no series has two times.
    """
    series = [np.unique(times) for times in series]
    gaps = np.concatenate([np.diff(times) for times in series]).astype(np.int64)
    if not len(gaps):
        raise ValueError("no series has two rows, so the time between rows is not known")
    everything = np.concatenate(series)
    origin = everything.min()
    day, length = _days_of_month(everything.astype("M8[M]"), everything.astype("M8[D]"))
    if np.min(gaps) >= 28 * DAY and (len(np.unique(day)) == 1 or (day == length - 1).all()):
        steps: np.ndarray = np.concatenate([np.diff(times.astype("M8[M]")) for times in series]).astype(np.int64)
        return TimeGrid(str(origin), math.gcd(*steps.tolist()), "months")
    sizes, counts = np.unique(gaps, return_counts=True)
    return TimeGrid(str(origin), int(sizes[np.argmax(counts)]), "microseconds")


@dataclass(frozen=True)
class Calendar:
    """Tokens of times: a number for each of `features`, such as the weekday, each with numbers of its own."""

    grid: TimeGrid
    features: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        return sum(self._sizes)

    def tokens(self, times: np.ndarray) -> np.ndarray:
        """int32 `[times, features]`."""
        days, months = times.astype("M8[D]"), times.astype("M8[M]")
        day, length = _days_of_month(months, days)
        slot = (times - days).astype(np.int64) // self._slot
        weekday = (days.astype(np.int64) + 3) % 7  # 0 is Monday: the epoch began on a Thursday
        month = months.astype(np.int64) % 12
        day_of_year = (days - times.astype("M8[Y]").astype("M8[D]")).astype(np.int64)
        # The first to third of a weekday in a month, the fourth that is not the last, the fourth that is, the fifth:
        # holidays such as "the last Monday of May" are one or two of these.
        nth, is_last = day // 7, day + 7 >= length
        which = np.where(nth == 3, nth + is_last, np.where(nth == 4, 5, nth))
        numbers = {
            "time_of_day": slot,
            "time_of_week": weekday * (DAY // self._slot) + slot,
            "weekday": weekday,
            "month": month,
            "week_of_year": day_of_year // 7,
            "day_of_year": month * 31 + day,
            "weekday_of_month": (month * 6 + which) * 7 + weekday,
        }
        starts = np.cumsum([0, *self._sizes[:-1]])
        columns = [numbers[name] + start for name, start in zip(self.features, starts, strict=False)]
        return np.stack(columns, axis=1).astype(np.int32) if columns else np.zeros((len(times), 0), np.int32)

    @property
    def _sizes(self) -> list[int]:
        """The count of numbers of each feature."""
        slots = DAY // self._slot
        sizes = {"time_of_day": slots, "time_of_week": 7 * slots, "weekday": 7, "month": 12, "week_of_year": 53}
        sizes |= {"day_of_year": 12 * 31, "weekday_of_month": 12 * 6 * 7}
        return [sizes[name] for name in self.features]

    @property
    def _slot(self) -> int:
        """The length of the parts of a day, in microseconds."""
        step = self.grid.step
        return step if self.grid.unit == "microseconds" and step >= MINUTE and DAY % step == 0 else HOUR


def calendar_of(grid: TimeGrid, steps: int) -> Calendar:
    """The features that times of the grid can have. Those of the year need a training of MIN_YEARS: `steps`."""
    if grid.unit == "months":
        return Calendar(grid, ("month",) if steps * grid.step >= 12 * MIN_YEARS and grid.step < 12 else ())
    features = ["time_of_day", "time_of_week"] if grid.step < DAY else []
    if grid.step % (7 * DAY):
        features.append("weekday")
    if steps * grid.step >= MIN_YEARS * 365 * DAY:
        features += ["day_of_year", "weekday_of_month"] if grid.step < 7 * DAY else ["week_of_year"]
    return Calendar(grid, tuple(features))


def parse_time(value: Any) -> datetime:
    """A time of a file: a date or datetime, or ISO 8601 text ("1988-12-31", "1988/12/31", "1988-12-31T23:00Z",
    "1988-12", "1988"), or a quarter ("1988 Q4", "1988Q4", "1988-Q4"). A whole number is read as its digits are.

    Raises ValueError for anything else.
    """
    text = "" if isinstance(value, date) else as_text(value).replace("/", "-")
    if _MONTH.fullmatch(text):
        text += "-01" if "-" in text else "-01-01"
    elif quarter := _QUARTER.fullmatch(text):
        text = f"{quarter[1]}-{3 * int(quarter[2]) - 2:02}-01"
    try:
        return as_date(text or value)
    except ValueError:
        raise ValueError(f"{value!r} is not a time; times are ISO 8601, such as 1988-12-31T23:00") from None


def time_texts(times: np.ndarray) -> list[str]:
    """Times as ISO 8601, without a time of the day if it is midnight in all of them."""
    is_day = bool((times == times.astype("M8[D]")).all())
    return np.datetime_as_string(times, unit="D" if is_day else "s").tolist()  # type: ignore[no-any-return]


def parse_parts(values: Iterable[Any]) -> datetime:
    """A time from its year and, if there are more, month, day, hour, minute and second. Raises ValueError."""
    parts = [int(value) for value in values]
    return datetime(*parts, *[1] * (3 - len(parts)))  # type: ignore[arg-type]


def _days_of_month(months: np.ndarray, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The day within each month, from 0, and the days of that month."""
    starts = months.astype("M8[D]")
    return (days - starts).astype(np.int64), ((months + MONTH).astype("M8[D]") - starts).astype(np.int64)
