"""The difference of two versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aifx.core.results import Result
from aifx.curation.history import ancestors
from aifx.data.names import CLUSTER, ROW, SOURCE
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import Manifest
from aifx.data.versions.parts import check_own_rows
from aifx.data.versions.sql import RowTable, identifier, open_tables

MOST_SOURCES = 1000


@dataclass(frozen=True)
class SourceDifference:
    """Rows of a source by what became of them."""

    source: str
    added: int
    removed: int
    changed: int


@dataclass(frozen=True)
class RemovedBy:
    """Rows of the first version that a step between the two dropped."""

    reference: str
    step: str
    rule: str
    rows: int


@dataclass(frozen=True)
class VersionDifference(Result):
    """The document of `aifx data diff --json`.

    Attributes:
        references: the two versions.
        rows: of each.
        changed: rows of both that differ in a column of both. aifx's own columns do not count, except `_split`.
        by_source: sources with a difference, those with the most first.
        removed_by: removed rows by step and rule, if a step on the way to the second version dropped them.
        columns_retyped: old and new type by column.
    """

    references: tuple[str, str]
    rows: tuple[int, int]
    size_bytes: tuple[int, int]
    added: int
    removed: int
    changed: int
    same: int
    by_source: tuple[SourceDifference, ...]
    removed_by: tuple[RemovedBy, ...]
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    columns_retyped: Mapping[str, tuple[str, str]]

    @property
    def is_different(self) -> bool:
        columns = self.columns_added or self.columns_removed or self.columns_retyped
        return bool(self.added or self.removed or self.changed or columns)


def compare_versions(catalog: Catalog, first: str, second: str) -> VersionDifference:
    """Compare the rows of two versions by `_row` and by content. Raises UsageError, also for a mix, and DataError."""
    a, b = catalog.open(first), catalog.open(second)
    for version in (a, b):
        check_own_rows(version.manifest, "aifx data diff")
    between = {one.whole_reference: one for one in ancestors(catalog, b.manifest.whole_reference) if one.dropped}
    for one in ancestors(catalog, a.manifest.whole_reference):
        between.pop(one.whole_reference, None)
    tables = {"a": RowTable(a), "b": RowTable(b)}
    tables |= {f"dropped_{n}": RowTable(catalog.open(one), "dropped") for n, one in enumerate(between)}
    with open_tables(tables) as connection:
        columns = [name for name in a.manifest.columns if name in b.manifest.columns and name not in (ROW, CLUSTER)]
        content = f"hash({', '.join(map(identifier, columns))})" if columns else "0"
        connection.execute(
            f"""CREATE TABLE pairs AS SELECT _row, coalesce(b._source, a._source) AS source,
                a._row IS NULL AS is_added, b._row IS NULL AS is_removed, a.h IS DISTINCT FROM b.h AS differs
            FROM (SELECT _row, {_source(a.manifest)}, {content} AS h FROM a) a
            FULL JOIN (SELECT _row, {_source(b.manifest)}, {content} AS h FROM b) b USING (_row)"""
        )
        counts = """count(*) FILTER (is_added), count(*) FILTER (is_removed),
            count(*) FILTER (differs AND NOT is_added AND NOT is_removed)"""
        added, removed, changed, every = connection.execute(f"SELECT {counts}, count(*) FROM pairs").fetchone()
        by_source = connection.execute(
            f"""SELECT source, {counts} FROM pairs WHERE differs
            GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {MOST_SOURCES}"""
        ).fetchall()
        removed_by = [
            RemovedBy(one.reference, one.step.name, rule, rows)
            for number, one in enumerate(between.values())
            for rule, rows in _rules(connection, f"dropped_{number}")
        ]
    ours, theirs = a.manifest.columns, b.manifest.columns
    return VersionDifference(
        references=(a.reference, b.reference),
        rows=(a.manifest.rows, b.manifest.rows),
        size_bytes=(a.manifest.bytes, b.manifest.bytes),
        added=added,
        removed=removed,
        changed=changed,
        same=every - added - removed - changed,
        by_source=tuple(SourceDifference(*row) for row in by_source),
        removed_by=tuple(removed_by),
        columns_added=tuple(name for name in theirs if name not in ours),
        columns_removed=tuple(name for name in ours if name not in theirs),
        columns_retyped={n: (ours[n], theirs[n]) for n in ours if n in theirs and ours[n] != theirs[n]},
    )


def _source(manifest: Manifest) -> str:
    return SOURCE if SOURCE in manifest.columns else f"NULL::VARCHAR AS {SOURCE}"


def _rules(connection: Any, table: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = connection.execute(
        f"""SELECT rule, count(*) FROM {table} JOIN pairs USING (_row) WHERE is_removed
        GROUP BY 1 ORDER BY 2 DESC, 1"""
    ).fetchall()
    return found
