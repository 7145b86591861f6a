"""Rows of a file as series: the times and numbers of each, in order."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import numpy as np

from aifx.core.errors import DataError
from aifx.data.columns import as_number, is_missing
from aifx.data.readers.rows import FORMATS, unknown_format
from aifx.data.readers.rows import field as value_of
from aifx.data.readers.sources import SourceFile
from aifx.data.sections import SeriesSection
from aifx.data.table_file import RowsOf, rows_of
from aifx.data.time_grid import TimeGrid, parse_parts, parse_time

EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)
TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class SeriesRows:
    """The rows of one series, by time."""

    name: str
    times: np.ndarray  # datetime64[us] [rows]
    numbers: np.ndarray  # float64 [rows, 1 + covariates]: the value and `known` and `past`, NaN where missing
    rows: np.ndarray  # int64 [rows]: the number of each in the file

    def until_last_value(self) -> SeriesRows:
        """Without the rows after the last value, which hold covariates of a time to come."""
        end = 1 + max(np.flatnonzero(np.isfinite(self.numbers[:, 0])), default=0)
        return SeriesRows(self.name, self.times[:end], self.numbers[:end], self.rows[:end])


@dataclass
class _Collected:
    times: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("d"))
    rows: array[int] = field(default_factory=lambda: array("q"))


def read_series(file: RowsOf, section: SeriesSection) -> list[SeriesRows]:
    """The series of a .csv, .jsonl or .parquet file or a version, by name. Raises DataError naming file and line."""
    if isinstance(file, SourceFile) and file.format not in FORMATS:
        raise unknown_format(file, FORMATS)
    collected: dict[str, _Collected] = {}
    for row in rows_of(file):
        try:
            name = "" if section.series is None else str(value_of(row.values, section.series))
            time, numbers = read_time(row.values, section), read_numbers(row.values, section)
        except (ValueError, TypeError, OverflowError) as error:
            why = str(error)
            hint = "correct the row (the cell of a missing number is empty), or change [data]"
            raise DataError(f"{row.place}: the row cannot be used", why, hint) from None
        found = collected.setdefault(name, _Collected())
        found.times.append((time - EPOCH) // MICROSECOND)
        found.numbers.extend(numbers)
        found.rows.append(row.number)
    if not collected:
        raise DataError(f"{file.name}: no rows", "a series has a row per time", f"head {file.name}")
    return [_ordered(file, name, collected[name]) for name in sorted(collected)]


def read_time(values: Mapping[str, Any], section: SeriesSection) -> datetime:
    """The time of a row. Raises ValueError."""
    if isinstance(section.time, str):
        return parse_time(value_of(values, section.time))
    return parse_parts(value_of(values, column) for column in section.time)


def read_numbers(values: Mapping[str, Any], section: SeriesSection) -> list[float]:
    """The value and the covariates of a row, NaN where they are missing. Raises ValueError."""
    return [_number(values, column) for column in (section.value, *section.known, *section.past)]


def check_places(file: RowsOf, series: SeriesRows, grid: TimeGrid) -> np.ndarray:
    """The places of the rows on the grid, each once. Raises DataError naming the line."""
    places, is_on = grid.places(series.times)
    if not is_on.all():
        row = int(np.flatnonzero(~is_on)[0])
        what = f"{_place(file, series.rows[row])}: a time between two steps"
        why = f"{series.times[row]} is no whole number of steps of {grid} from {grid.origin}"
        raise DataError(what, why, "round the times, or add up the values of each step")
    if (twice := np.flatnonzero(np.diff(places) == 0)).size:
        first, second = series.rows[int(twice[0])], series.rows[int(twice[0]) + 1]
        named = f" of series {series.name!r}" if series.name else ""
        what = f"{_place(file, second)}: the time{named} is also that of {_place(file, first)}"
        hint = 'series = "COLUMN" below [data], if a column names several series; otherwise remove a row'
        raise DataError(what, f"{series.times[int(twice[0]) + 1]}, and a step is {grid}", hint)
    return places


def _ordered(file: RowsOf, name: str, found: _Collected) -> SeriesRows:
    times = np.array(found.times, np.int64).astype("M8[us]")
    order = np.argsort(times, kind="stable")
    numbers = np.array(found.numbers).reshape(len(times), -1)
    return SeriesRows(name, times[order], numbers[order], np.array(found.rows, np.int64)[order])


def _number(values: Mapping[str, Any], column: str) -> float:
    value = value_of(values, column)
    if is_missing(value):
        return math.nan
    if isinstance(value, str):
        value = TRUTH.get(value.strip().lower(), value)
    try:
        return as_number(value)
    except ValueError as error:
        raise ValueError(f"column {column!r}: {error}") from None


def _place(file: RowsOf, number: int) -> str:
    """The place of a row by its number, for errors: the file is read again."""
    if isinstance(file, SourceFile) and file.is_stdin:
        return f"{file.name}: row {number}"
    return next(row.place for row in islice(rows_of(file), number - 1, None))
