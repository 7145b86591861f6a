"""Columns of a table: what their training rows hold, and their values as numbers. Imports no jax."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np

from aifx.data.spec import Column, ColumnKind

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""Texts that mean a missing value, in lower case."""

BOOLEANS = {"false": "false", "true": "true", "f": "false", "t": "true", "no": "false", "yes": "true"}

UNKNOWN, MISSING_CATEGORY, FIRST_CATEGORY = range(3)

RARE = 2
"""A category with fewer training rows counts as unknown, so that what is unknown is learned, too."""

MOST_DIFFERENT = 0.5
"""A text column with more different values, as a share of its rows, names rows rather than classes of them."""

FEW_ROWS = 100  # below this, any text column is categorical

FARTHEST = 1e6
"""From the mean of a column, in standard deviations: a number farther off counts as one there, and float32 holds it."""

LARGEST = 1e36
"""Of a number: float32 holds it, and sums and differences of such."""

_FOREIGN_DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}(\s|$)")

PARTS: dict[str, Callable[[datetime], float]] = {
    "day": lambda at: (at - datetime(1970, 1, 1)).total_seconds() / 86400,
    "month": lambda at: at.month,
    "day_of_month": lambda at: at.day,
    "day_of_week": lambda at: at.isoweekday(),
    "hour": lambda at: at.hour + at.minute / 60,
}
"""The numbers that a date becomes. "day" counts from 1970-01-01, with its fraction."""

CALENDAR = ("month", "day_of_month", "day_of_week", "hour")
"""The parts that come again, so that rows of a later time have known values."""


def is_missing(value: Any) -> bool:
    """Whether a cell has no value."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str:
    """A value as the name of a class."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def as_number(value: Any) -> float:
    """Raises ValueError for a value that is no number, or one beyond LARGEST."""
    text = value.strip() if isinstance(value, str) else value
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (isinstance(text, str) and "_" in text):
        raise ValueError(f"{value!r} is not a number")
    if abs(number) > LARGEST:
        raise ValueError(f"{value!r} is larger than {LARGEST:g}; leave the cell empty if it means a missing value")
    return number


def scale_of(numbers: np.ndarray) -> float:
    """The standard deviation; 1 for numbers that are all equal, of which rounding would make a tiny one.

    If the squares of the differences are less than the smallest float64, it is the range.
    """
    spread = np.ptp(numbers)
    return float(numbers.std() or spread) if spread > 0 else 1.0


def as_boolean(value: Any) -> str:
    """ "true" or "false". Raises ValueError for another word."""
    if (text := BOOLEANS.get(as_text(value).lower())) is None:
        raise ValueError(f"{value!r} is neither true nor false")
    return text


def as_date(value: Any) -> datetime:
    """In UTC if it has a time zone. Raises ValueError for what is not a date in ISO 8601 or with slashes."""
    if isinstance(value, datetime):
        at = value
    elif isinstance(value, date):
        at = datetime.combine(value, time())
    else:
        try:
            at = datetime.fromisoformat(as_text(value).replace("/", "-"))
        except ValueError:
            raise ValueError(f"{value!r} is not a date such as 2024-05-31 or 2024-05-31T12:00") from None
    return at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at


CONVERSIONS: dict[ColumnKind, Callable[[Any], Any]] = {
    "numeric": as_number,
    "boolean": as_boolean,
    "date": as_date,
    "categorical": as_text,
}
"""By kind, in the order in which `infer_kind` tries them."""


def infer_kind(values: Iterable[Any]) -> ColumnKind:
    """The first kind that all values have that are not missing."""
    present = [value for value in values if not is_missing(value)]
    if present and all(isinstance(value, bool) for value in present):
        return "boolean"
    return next(kind for kind, convert in CONVERSIONS.items() if _all(convert, present))


def _all(convert: Callable[[Any], Any], values: Iterable[Any]) -> bool:
    try:
        for value in values:
            convert(value)
    except ValueError:
        return False
    return True


def names_rows(values: Sequence[Any]) -> bool:
    """Whether most values of a text column are different: an identifier, or free text."""
    different = {as_text(value) for value in values if not is_missing(value)}
    return len(values) >= FEW_ROWS and len(different) > MOST_DIFFERENT * len(values)


def odd_number(values: Sequence[Any]) -> str | None:
    """The first value of a text column that is no number, if nine in ten are numbers."""
    odd = [value for value in values if not is_missing(value) and not _all(as_number, [value])]
    return as_text(odd[0]) if odd and len(odd) <= len(values) / 10 else None


def foreign_date(values: Sequence[Any]) -> str | None:
    """The first value of a text column that has the day or the month first, if all values look like dates."""
    foreign = [text for value in values if not is_missing(value) and _FOREIGN_DATE.match(text := as_text(value))]
    others = (value for value in values if not is_missing(value) and not _FOREIGN_DATE.match(as_text(value)))
    return foreign[0] if foreign and _all(as_date, others) else None


def infer_columns(
    name: str, kind: ColumnKind, values: Sequence[Any], *, bins: int, parts: Iterable[str] = PARTS
) -> list[Column]:
    """The inputs that a column becomes; none if it does not distinguish training rows.

    Args:
        values: of the training rows. Raises ValueError for one that is not of this kind.
        bins: most bins of a number, at quantiles of the training rows.
        parts: of a date.
    """
    present = [CONVERSIONS[kind](value) for value in values if not is_missing(value)]
    some_missing = len(present) < len(values)
    if kind == "boolean":
        categories = ("false", "true")
        return [Column(name, kind, categories=categories)] if len(set(present)) + some_missing > 1 else []
    if kind == "categorical":
        counts = Counter(present)
        kept = tuple(sorted(text for text, count in counts.items() if count >= RARE))
        is_useful = bool(counts) if some_missing else len(counts) > 1 and bool(kept)
        return [Column(name, kind, categories=kept)] if is_useful else []
    if kind == "numeric":
        found = [_numeric(name, kind, "", present, bins, some_missing)]
    else:
        found = [_numeric(name, kind, part, [PARTS[part](at) for at in present], bins, some_missing) for part in parts]
    return [column for column in found if column is not None]


def _numeric(
    name: str, kind: ColumnKind, part: str, values: Sequence[float], bins: int, some_missing: bool
) -> Column | None:
    numbers = np.asarray(values, np.float64)
    if not len(numbers) or (np.ptp(numbers) == 0 and not some_missing):
        return None
    mean, scale = float(numbers.mean()), scale_of(numbers)
    quantiles = np.quantile((numbers - mean) / scale, np.linspace(0, 1, bins + 1))
    edges = np.unique(quantiles.astype(np.float32))
    return Column(name, kind, part, mean, scale, tuple(map(float, edges)))


def encoder(column: Column) -> Callable[[Any], float]:
    """The function that makes the number of a value, as `Column` says. It raises ValueError for one that does not fit.

    A word that is neither true nor false is an unknown category.
    """
    if column.is_categorical:
        numbers = {text: number for number, text in enumerate(column.categories, FIRST_CATEGORY)}
        spelled = BOOLEANS if column.kind == "boolean" else {}

        def category(value: Any) -> float:
            if is_missing(value):
                return MISSING_CATEGORY
            text = as_text(value)
            return numbers.get(spelled.get(text.lower(), text), UNKNOWN)

        return category

    def number(value: Any) -> float:
        if is_missing(value):
            return math.nan
        plain = PARTS[column.part](as_date(value)) if column.kind == "date" else as_number(value)
        return min(max((plain - column.mean) / column.scale, -FARTHEST), FARTHEST)

    return number


def shown_value(column: Column, number: float) -> str:
    """The value from which `encoder` made a number, to the precision of float32."""
    if column.is_categorical:
        return ("(unknown)", "(missing)", *column.categories)[int(number)]
    if math.isnan(number):
        return "(missing)"
    places = 5 - math.floor(math.log10(column.scale))  # float32 holds no more of values of this scale
    return f"{round(number * column.scale + column.mean, places) + 0.0:g}"  # no -0


def shown_columns(columns: Sequence[Column]) -> Iterator[tuple[str, ColumnKind, str]]:
    """Name, kind and content of each column of the file, for people."""
    by_name: dict[str, list[Column]] = {}
    for column in columns:
        by_name.setdefault(column.name, []).append(column)
    for name, (first, *others) in by_name.items():
        if first.is_categorical:
            content = f"{len(first.categories)} categories: {', '.join(first.categories[:3])}"
            content += ", ..." if len(first.categories) > 3 else ""
        elif first.kind == "date":
            content = ", ".join(column.part for column in (first, *others))
        else:
            low, high = (_plain(edge, first) for edge in (first.edges[0], first.edges[-1]))
            content = f"{low:.5g} to {high:.5g}, {len(first.edges) - 1} bins"
        yield name, first.kind, content


def _plain(edge: float, column: Column) -> float:
    """An edge of a bin in the column's unit, without what float32 adds to it."""
    return round(edge + column.mean / column.scale, 5) * column.scale + 0.0  # a zero without a sign
