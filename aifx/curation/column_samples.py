"""Columns of a version, of as many rows as are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aifx.curation.column_drift import MOST_ROWS
from aifx.data.names import CHAT, RESERVED, ROW, SPLIT
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import RowTable, identifier, open_tables

NUMBERS = ("int", "uint", "float", "double", "halffloat", "decimal")
VALUES = ("string", "large_string", "bool")


def sample_columns(version: Version, names: Iterable[str]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The columns that can be compared, as `compare_columns` takes them, and which of them are lengths of texts.

    Of versions that share rows, these are the same rows.
    """
    manifest = version.manifest
    text = CHAT if manifest.kind == "chat" else "text"
    expressions: dict[str, str] = {}
    for name in names:
        kind = manifest.columns[name]
        if name in RESERVED and name != SPLIT:
            continue
        if name == text:
            expressions[name] = f"length({name})::DOUBLE"
        elif kind.startswith(NUMBERS):
            expressions[name] = f"{identifier(name)}::DOUBLE"
        elif kind in VALUES:
            expressions[name] = f"{identifier(name)}::VARCHAR"
    if not expressions:
        return {}, ()
    chosen = ", ".join(f"{sql} AS c{n}" for n, sql in enumerate(expressions.values()))
    with open_tables({"data": RowTable(version)}) as connection:
        found = connection.sql(f"SELECT {chosen} FROM data ORDER BY hash({ROW}) LIMIT {MOST_ROWS}").to_arrow_table()
    columns: dict[str, Any] = {}
    for name, column in zip(expressions, found.columns, strict=True):
        is_number = expressions[name].endswith("DOUBLE")
        columns[name] = column.to_numpy().astype(np.float64) if is_number else column.to_pylist()
    return columns, tuple(name for name in columns if name == text)
