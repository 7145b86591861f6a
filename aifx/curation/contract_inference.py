"""A first contract from what a version holds: narrow enough to find a change, for a person to loosen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from aifx.core.errors import UsageError
from aifx.curation.contracts import TYPES, Expectation, has_type
from aifx.curation.drift import LEAST_ROWS
from aifx.curation.profile import ColumnProfile, Profile, read_profile
from aifx.data.names import RESERVED
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import RowTable, identifier, open_tables, quoted

MOST_VALUES = 20
ROWS_PER_VALUE = 10
"""A column has allowed values if it has at most 20, each in ten rows on average."""

PSI_BOUND = 0.25
"""A shift that users of the index call significant: Siddiqi, "Credit Risk Scorecards" (2006)."""

PATTERNS = (
    r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
    r"^\d{4}-\d{2}-\d{2}$",
    r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}",
    r"^https?://\S+$",
    r"^[^@\s]+@[^@\s]+\.[^@\s]+$",
    r"^[A-Z]{2,3}$",
    r"^[+-]?\d+$",
    r"^[+-]?\d+\.\d+$",
)
"""Forms of texts: a UUID, a date, a time, a URL, an address, a code, numbers."""


def infer_contract(catalog: Catalog, reference: str) -> tuple[str, str, list[str]]:
    """The reference of a version, a contract that it keeps as TOML, and the ids of its rules.

    Raises UsageError for a version without rows, DataError if it is damaged.
    """
    version = catalog.open(reference)
    profile = read_profile(catalog, version.reference).profile
    if not profile.rows:
        raise UsageError(f"{version.reference} has no rows", "there is nothing to infer", "aifx data ls")
    rules = [Expectation.model_validate(rule) for rule in _rules(version, profile)]
    comment = (
        f"# Rules that {version.reference} keeps. Bounds are what its rows have: loosen them where others may come."
    )
    return version.reference, "\n\n".join([comment, *map(_toml, rules)]) + "\n", [rule.name for rule in rules]


def _rules(version: Version, profile: Profile) -> Iterator[dict[str, Any]]:
    yield {"check": "rows", "at_least": profile.rows // 2, "at_most": profile.rows * 2, "level": "warn"}
    columns = {name: one for name, one in profile.columns.items() if name not in RESERVED}
    with open_tables({"data": RowTable(version)}) as connection:
        for name, column in columns.items():
            family = next((one for one in TYPES if has_type(column.type, one)), column.type)
            yield {"column": name, "check": "type", "type": family}
            if column.nulls == profile.rows:
                continue
            yield from _filled(name, column, profile.rows)
            more = _of_texts if family == "text" else _of_others
            yield from more(name, column, profile, version, connection)


def _filled(name: str, column: ColumnProfile, rows: int) -> Iterator[dict[str, Any]]:
    if not column.nulls:
        yield {"column": name, "check": "not_null"}
    elif percent := 100 * (rows - column.nulls) // rows:
        yield {"column": name, "check": "not_null", "mostly": percent / 100, "level": "warn"}


def _of_texts(
    name: str, column: ColumnProfile, profile: Profile, version: Version, connection: Any
) -> Iterator[dict[str, Any]]:
    filled = profile.rows - column.nulls
    values = column.values
    if values and len(values) == column.distinct and len(values) <= min(MOST_VALUES, filled // ROWS_PER_VALUE):
        yield {"column": name, "check": "values", "values": sorted(values)}
        return
    one = identifier(name)
    matching = ", ".join(f"bool_and(regexp_matches({one}, {quoted(pattern)}))" for pattern in PATTERNS)
    sql = f"SELECT min(length({one})), max(length({one})), {matching} FROM data"
    ((least, most, *found),) = connection.execute(sql).fetchall()
    if pattern := next((pattern for pattern, is_kept in zip(PATTERNS, found, strict=True) if is_kept), None):
        yield {"column": name, "check": "matches", "pattern": pattern}
    else:
        yield {"column": name, "check": "length", "at_least": least, "at_most": most, "level": "warn"}
    if name != "text" and _is_unique(name, column, profile.rows, connection):
        yield {"column": name, "check": "unique"}


def _of_others(
    name: str, column: ColumnProfile, profile: Profile, version: Version, connection: Any
) -> Iterator[dict[str, Any]]:
    is_number, is_integer = has_type(column.type, "number"), has_type(column.type, "integer")
    most = min(MOST_VALUES, (profile.rows - column.nulls) // ROWS_PER_VALUE)
    if is_integer and not column.is_estimate and column.distinct is not None and column.distinct <= most:
        one = identifier(name)
        values = connection.execute(f"SELECT DISTINCT {one} FROM data WHERE {one} IS NOT NULL ORDER BY 1").fetchall()
        yield {"column": name, "check": "values", "values": [value for (value,) in values], "level": "warn"}
        return
    bounds = (column.min, column.max)
    filled = profile.rows - column.nulls
    if column.type in ("float", "double"):
        sql = f"SELECT count(*) FILTER (NOT isnan({identifier(name)})) FROM data"
        ((numbers,),) = connection.execute(sql).fetchall()
        if numbers < filled:  # a range has no room for NaN
            bounds = (None, None)
        filled = numbers
    if is_number and all(isinstance(bound, int | float) and math.isfinite(bound) for bound in bounds):
        yield {"column": name, "check": "range", "at_least": column.min, "at_most": column.max, "level": "warn"}
    elif has_type(column.type, "time") and column.min is not None:
        yield {"column": name, "check": "range", "at_least": column.min, "level": "warn"}
    is_key = is_integer and _is_unique(name, column, profile.rows, connection)
    if is_key:
        yield {"column": name, "check": "unique"}
    elif is_number and filled >= LEAST_ROWS:
        what = {"against": version.manifest.reference, "measure": "psi", "at_most": PSI_BOUND}
        yield {"column": name, "check": "distribution", **what, "level": "warn"}


def _is_unique(name: str, column: ColumnProfile, rows: int, connection: Any) -> bool:
    """Whether no value is twice. The rows are read only if the profile does not say so."""
    if column.nulls or rows < LEAST_ROWS or column.distinct is None or column.distinct < 0.9 * rows:
        return False
    if not column.is_estimate:
        return column.distinct == rows
    ((count,),) = connection.execute(f"SELECT count(DISTINCT {identifier(name)}) FROM data").fetchall()
    return bool(count == rows)


def _toml(rule: Expectation) -> str:
    settings: Mapping[str, Any] = rule.settings
    keys = [key for key in ("column", "check", *type(rule).model_fields) if key in settings]
    values = {key: settings[key] for key in dict.fromkeys(keys)}
    if len(values.get("column", ())) == 1:
        (values["column"],) = values["column"]
    return "\n".join(["[[rule]]", *(f"{key} = {_value(value)}" for key, value in values.items())])


def _value(value: Any) -> str:
    """A value as TOML has it: its strings escape what JSON's do, and U+007F."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
