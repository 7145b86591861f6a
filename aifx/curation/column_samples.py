"""What can be compared of a column, and columns of a version, of as many rows as are compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

import numpy as np

from aifx.curation.column_drift import MOST_ROWS, MOST_VALUES
from aifx.data.columns import as_text, is_missing, number_or_nan
from aifx.data.names import CHAT, RESERVED, ROW, SPLIT
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import RowTable, identifier, open_tables

MOST_LEVELS = 20
"""Distinct numbers that are compared as values: 0 and 1, or classes, have no distance."""

LEAST_NUMBERS = 0.99
"""Share of the reference's values that are numbers in a column of numbers. Others are missing."""

MOST_NAMES = 0.5
"""Distinct values by rows of the reference. More are names of rows or files, of which new rows have others."""

LEAST_TEXT = 40
"""Characters of a column's texts, by the median; shorter ones are names."""

MOST_CHARACTERS = 4000
"""Characters of a text that are read."""

NEW = "another value"
"""Instead of the values that the reference does not have, or seldom."""


def comparable(reference: Sequence[Any], now: Sequence[Any]) -> tuple[Any, Any] | str:
    """A column of both sides as `compare_columns` takes it: numbers, or values; otherwise why it cannot be compared.

    The reference says what the column is, so that other values now are a drift and not another column. A column of
    texts is compared elsewhere: `is_text`.
    """
    there = [value for value in reference if not _is_missing(value)]
    if isinstance(next(iter(there), None), (date, time)) or _are_dates(there[:100]):
        return "dates, which are others each day"
    numbers = sum(map(_is_number, there))
    if odd := {type(one).__name__ for one in there if not isinstance(one, (str, bool)) and not _is_number(one)}:
        return f"values of type {min(odd)}"
    if there and numbers >= LEAST_NUMBERS * len(there):
        old, new = (np.array([number_or_nan(value) for value in side]) for side in (reference, now))
        known = set(old[np.isfinite(old)].tolist())
        if len(known) > MOST_LEVELS:
            return old, new
        return _levels(old, known), _levels(new, known)
    counts = Counter(_text(value) for value in there)
    if len(counts) > MOST_NAMES * len(there):
        return "names that few rows share, which are others each day"
    kept = set(sorted(counts, key=lambda text: (-counts[text], text))[: MOST_VALUES - 1])
    found = []
    for side in (reference, now):
        texts = [None if _is_missing(value) else _text(value) for value in side]
        found.append([text if text is None or text in kept else NEW for text in texts])
    return found[0], found[1]


def _levels(numbers: Any, known: Collection[float]) -> list[str | None]:
    """Numbers as values, the same of 1 and 1.0."""
    levels = [f"{one:.17g}" if one in known else NEW for one in numbers.tolist()]
    return [None if is_gap else level for level, is_gap in zip(levels, np.isnan(numbers).tolist(), strict=True)]


def is_text(values: Iterable[Any]) -> bool:
    """Whether a column holds texts, whose lengths and words are compared, and no names."""
    lengths = [len(value) for value in values if isinstance(value, str) and value]
    return bool(lengths) and float(np.median(lengths)) >= LEAST_TEXT


def lengths_of(values: Iterable[Any]) -> Any:
    return np.array([float(len(value)) if isinstance(value, str) else math.nan for value in values])


def _text(value: Any) -> str:
    """The same of true and "True"."""
    text = as_text(value)
    return text.lower() if text in ("True", "False") else text


def _is_missing(value: Any) -> bool:
    return isinstance(value, (str, float, type(None))) and is_missing(value)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and math.isfinite(number_or_nan(value))


def _are_dates(values: Sequence[Any]) -> bool:
    if not values or not all(isinstance(value, str) and len(value) >= 8 and "-" in value for value in values):
        return False
    try:
        for value in values:
            datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def sample_columns(
    versions: Sequence[Version], names: Iterable[str]
) -> tuple[tuple[Mapping[str, Any], Mapping[str, Any]], tuple[str, ...]]:
    """The columns of two versions that can be compared, and which of them are lengths of texts.

    Of versions that share rows, these are the same rows.
    """
    manifest = versions[0].manifest
    text = CHAT if manifest.kind == "chat" else "text"
    chosen = [name for name in names if name not in RESERVED or name == SPLIT]
    sides: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    if not chosen:
        return sides, ()
    kinds = manifest.columns
    columns = ", ".join(
        f"{_expression(name, kinds[name], is_text=name == text)} AS c{number}" for number, name in enumerate(chosen)
    )
    old, new = (_read(version, columns) for version in versions)
    for name, *values in zip(chosen, old, new, strict=True):
        made: Any = tuple(map(_as_floats, values)) if name == text else comparable(*values)
        if not isinstance(made, str):
            sides[0][name], sides[1][name] = made
    return sides, tuple(name for name in sides[0] if name == text)


def _read(version: Version, columns: str) -> list[list[Any]]:
    with open_tables({"data": RowTable(version)}) as connection:
        sql = f"SELECT {columns} FROM data ORDER BY hash({ROW}) LIMIT {MOST_ROWS}"
        return [column.to_pylist() for column in connection.sql(sql).to_arrow_table().columns]


def _as_floats(values: Iterable[int | None]) -> Any:
    return np.array([math.nan if value is None else float(value) for value in values])


def _expression(name: str, kind: str, *, is_text: bool) -> str:
    if is_text:
        return f"length({identifier(name)})"
    if kind in ("string", "large_string"):
        return f"left({identifier(name)}, {MOST_CHARACTERS})"
    return identifier(name) if not kind.startswith(("list", "struct", "map", "binary", "large_binary")) else "NULL"
