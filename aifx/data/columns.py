"""Tables by column: files of rows whole in memory, what their training rows hold, and their values as numbers."""

from __future__ import annotations

import logging
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import compress, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.errors import DataError, did_you_mean
from aifx.core.project import Project
from aifx.data.base import no_column
from aifx.data.file_index import ImplicitVersion, version_of_path
from aifx.data.names import RESERVED, ROW
from aifx.data.readers.rows import FORMATS, Row, read_rows
from aifx.data.readers.sources import SourceFile, local_file, named_file
from aifx.data.sections import PathSection
from aifx.data.spec import Column, ColumnKind
from aifx.data.versions.catalog import DatasetPart

logger = logging.getLogger(__name__)

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})  # texts that mean a missing value, in lower case
BOOLEANS = {"false": "false", "true": "true", "f": "false", "t": "true", "no": "false", "yes": "true"}

UNKNOWN, MISSING_CATEGORY, FIRST_CATEGORY = range(3)

RARE = 2  # a category with fewer training rows counts as unknown, so that what is unknown is learned, too

MOST_DIFFERENT = 0.5
"""A text column with more different values, as a share of its rows, names rows rather than classes of them."""

FEW_ROWS = 100  # below this, any text column is categorical

FARTHEST = 1e6
"""Most standard deviations from the mean of a column: a number farther off counts as one there. float32 holds it."""

LARGEST = 1e36  # largest number that a column takes: float32 holds it, and sums and differences of such

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


def text_array(values: Iterable[Any]) -> np.ndarray:
    """Values as text, "" for a missing one."""
    return np.array(["" if is_missing(value) else as_text(value) for value in values], dtype=object)


def as_number(value: Any) -> float:
    """The number of a cell. Raises ValueError for a value that is no number, or one beyond LARGEST."""
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


def number_or_nan(value: Any) -> float:
    """The number of a cell, NaN for a value that is none."""
    try:
        return as_number(value)
    except ValueError:
        return math.nan


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
    """The date of a cell, in UTC if it has a time zone. Raises ValueError unless it is ISO 8601, or has slashes."""
    try:
        at = value if isinstance(value, datetime) else datetime.fromisoformat(as_text(value).replace("/", "-"))
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
    columns = []
    for part in parts if kind == "date" else [""]:
        numbers = np.array([PARTS[part](at) for at in present] if part else present, np.float64)
        if len(numbers) and (some_missing or np.ptp(numbers)):
            mean, scale = float(numbers.mean()), scale_of(numbers)
            quantiles = np.quantile((numbers - mean) / scale, np.linspace(0, 1, bins + 1))
            edges = np.unique(quantiles.astype(np.float32)).tolist()
            columns.append(Column(name, kind, part, mean, scale, tuple(edges)))
    return columns


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


def encode_column(column: Column, encode: Callable[[Any], float], values: Sequence[Any]) -> np.ndarray:
    """What `encode`, the `encoder` of a column, makes of each value, float64 `[rows]`: at once if they are alike.

    Raises ValueError for a value that does not fit.
    """
    kinds = set(map(type, values))
    if column.is_categorical and kinds <= {str, type(None)}:  # equal ones of other types may have different texts
        numbers = {value: encode(value) for value in set(values)}
        return np.array([numbers[value] for value in values], np.float64)
    if column.kind == "numeric" and kinds <= {str, float, int}:
        try:
            plain = np.array(list(map(float, values)), np.float64)
        except (ValueError, OverflowError):  # a missing value, or one that `encode` refuses
            plain = np.array([math.nan])
        if (np.abs(plain) <= LARGEST).all() and not any(type(value) is str and "_" in value for value in values):
            with np.errstate(over="ignore"):  # of a tiny scale
                return np.clip((plain - column.mean) / column.scale, -FARTHEST, FARTHEST)
    return np.array(list(map(encode, values)), np.float64)


def format_value(column: Column, number: float) -> str:
    """The value from which `encoder` made a number, to the precision of float32."""
    if column.is_categorical:
        return ("(unknown)", "(missing)", *column.categories)[int(number)]
    if math.isnan(number):
        return "(missing)"
    places = 5 - math.floor(math.log10(column.scale))  # float32 holds no more of values of this scale
    return f"{round(number * column.scale + column.mean, places) + 0.0:g}"  # no -0


def describe_columns(columns: Sequence[Column]) -> Iterator[tuple[str, ColumnKind, str]]:
    """Name, kind and content of each column of the file, for people."""
    for name, of_name in groupby(columns, lambda column: column.name):
        first, *others = of_name
        if first.is_categorical:
            content = f"{len(first.categories)} categories: {', '.join(first.categories[:3])}"
            content += ", ..." if len(first.categories) > 3 else ""
        elif first.kind == "date":
            content = ", ".join(column.part for column in (first, *others))
        else:
            # In the column's unit, without what float32 adds, and without the sign of a zero.
            ends = (round(edge + first.mean / first.scale, 5) for edge in (first.edges[0], first.edges[-1]))
            low, high = (end * first.scale + 0.0 for end in ends)
            content = f"{low:.5g} to {high:.5g}, {len(first.edges) - 1} bins"
        yield name, first.kind, content


@dataclass(frozen=True)
class Source:
    """The rows of a file, or of a version of a data set.

    Attributes:
        file: of a version, its reference alone.
        file_versions: the file by the key that names it.
    """

    file: SourceFile
    part: DatasetPart | None = None
    file_versions: Mapping[str, ImplicitVersion] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the file, or the reference of the version."""
        return self.file.name

    def rows(self) -> Iterator[Row]:
        """The rows in order, without the columns that aifx adds. Raises DataError, also if the file has changed."""
        yield from read_rows(self.file) if self.part is None else _rows_of(self.part)
        for version in self.file_versions.values():
            version.check_unchanged()

    def places(self, numbers: np.ndarray) -> list[str]:
        """The file and the line of rows by their numbers, from 0, in one more reading: places take no memory."""
        if self.part is None and self.file.is_stream:
            return [f"{self.name}: row {number + 1}" for number in numbers.tolist()]  # they were read
        rows = islice(self.rows(), int(numbers.max(initial=-1)) + 1)
        wanted = set(numbers.tolist())
        places = {row.number - 1: row.place for row in rows if row.number - 1 in wanted}
        return [places[number] for number in numbers.tolist()]

    def column(self, name: str) -> np.ndarray:
        """The values of a column as text, "" where one is missing: `[rows]`. Raises DataError if there is none."""
        if self.part is not None:
            if not self.part.has_column(name):
                raise no_column(name, self.name, self.part.manifest.columns)
            return text_array(self.part.column(name))
        values = []
        for row in self.rows():
            if name not in row.values:
                raise no_column(name, row.place, row.values)
            values.append(row.values[name])
        return text_array(values)


def open_source(section: PathSection, project: Project) -> Source:
    """The file or the version that `[data]` names. Raises UsageError, DataError."""
    if (part := section.open_part(project)) is not None:
        return Source(SourceFile(part.reference, part.reference, "dataset"), part)
    file = named_file(section.path, project.root)
    return Source(file, file_versions=version_of_path(file, project))


def _rows_of(part: DatasetPart) -> Iterator[Row]:
    batches = (batch for _, batch in part.batches(list(part.manifest.columns)))
    for number, values in enumerate((values for batch in batches for values in batch.to_pylist()), 1):
        kept = {name: value for name, value in values.items() if name not in RESERVED}
        yield Row(part.reference, number, f"{part.reference}: row {values.get(ROW) or number}", kept)


@dataclass(frozen=True)
class Table:
    """Rows of a file or a version, their values by column."""

    source: Source
    values: Mapping[str, Sequence[Any]]
    numbers: np.ndarray  # of the rows in the file, from 0 [rows]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def num_rows(self) -> int:
        return len(self.numbers)

    def column(self, name: str, key: str | None = None) -> Sequence[Any]:
        """The values of a column. Raises DataError if there is none of this name, which `key` of aifx.toml has."""
        if name in self.values:
            return self.values[name]
        what = f"{self.name}: no column {name!r}" + (f", which {key} names" if key else "")
        hint = f"head -n 1 {shlex.quote(self.name)}" if self.source.file.format == "csv" else ""
        raise DataError(what, did_you_mean(name, self.values), hint)

    def rows_where(self, which: np.ndarray) -> Table:
        values = {name: list(compress(values, which)) for name, values in self.values.items()}
        return replace(self, values=values, numbers=self.numbers[which])

    def known(self, name: str) -> Table:
        """The rows with a value in this column. Logs how many have none; raises DataError if none has one."""
        is_known = np.array([not is_missing(value) for value in self.column(name, "data.target")])
        if is_known.all():
            return self
        if not is_known.any():
            what = f"{self.name}: column {name!r} is empty"
            raise DataError(what, "no row has a value to learn", f"head {self.name}")
        missing = np.flatnonzero(~is_known)
        first = self.place(int(missing[0]))
        logger.warning(f"{self.name}: {len(missing):,} rows without {name!r} are left out, such as {first}")
        return self.rows_where(is_known)

    def convert(self, name: str, function: Callable[[Any], Any]) -> list[Any]:
        """The function of each value of a column. Raises DataError with the line of one that it refuses."""
        converted: list[Any] = []
        try:
            converted.extend(map(function, self.column(name)))  # keeps those before the one that fails
        except ValueError as error:
            what = f"{self.place(len(converted))}: column {name!r}"
            hint = "correct the row, or give the column another kind in data.columns: aifx config keys data"
            raise DataError(what, str(error), hint) from None
        return converted

    def place(self, row: int) -> str:
        """The file and the line of a row."""
        return self.source.places(self.numbers[[row]])[0]


def read_table(path: Path, name: str) -> Table:
    """The table at `path`, as `table_of` reads it. Raises DataError."""
    return table_of(Source(local_file(path, name)))


def table_of(source: Source) -> Table:
    """The rows of a source. Raises DataError, also for a row that lacks a column of the first."""
    if source.part is None and source.file.format not in FORMATS:
        why = f"a table is a file of {', '.join(f'.{format}' for format in FORMATS)}"
        raise DataError(f"{source.name} cannot be read as a table", why, f"ls -l {source.name}")
    values: dict[str, list[Any]] = {}
    numbers: list[int] = []
    for row in source.rows():
        if not numbers:
            values = {column: [] for column in row.values}
        if odd := sorted(row.values.keys() ^ values.keys()):
            why = f"it differs from the first in {', '.join(odd[:3])}"
            raise DataError(f"{row.place}: the row has other columns", why, "give each row the same fields")
        for column, cells in values.items():
            cells.append(row.values[column])
        numbers.append(row.number - 1)
    if not numbers:
        raise DataError(f"{source.name}: no rows", "a table has a header and rows below it", f"head {source.name}")
    return Table(source, values, np.array(numbers))
