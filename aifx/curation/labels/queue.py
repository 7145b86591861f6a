"""Which rows are labelled, in which order, and by whom."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aifx.core.errors import UsageError
from aifx.curation.labels.contents import Shown, contents_of, select_rows
from aifx.curation.labels.store import LabelState
from aifx.data.names import ROW
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import RowTable, identifier, open_tables

LEASE_S = 600.0
"""How long a row that a labeller got is kept for them."""


@dataclass(frozen=True)
class QueuedRow:
    """A row to label."""

    row: str
    source: str
    content: Mapping[str, Any]


def unlabelled_rows(version: Version, column: str, *, relabel: bool = False) -> str:
    """SQL of the rows of a version that have no value in the column. Their ids are `_row` of table `data`."""
    if relabel or column not in version.manifest.columns:
        return "SELECT * FROM data"
    return f"SELECT * FROM data WHERE {identifier(column)} IS NULL"


def sample_rows(version: Version, column: str, count: int, seed: int, *, relabel: bool = False) -> list[str]:
    """Ids of a random sample of the rows without a label in the version: the same for the same seed."""
    rows = unlabelled_rows(version, column, relabel=relabel)
    sql = f"SELECT {ROW} FROM ({rows}) ORDER BY md5({ROW} || '-{seed}'), {ROW} LIMIT {count}"
    with open_tables({"data": RowTable(version)}) as connection:
        found = [row for (row,) in connection.execute(sql).fetchall()]
    if not found:
        raise no_rows(version, column)
    return found


def no_rows(version: Version, column: str) -> UsageError:
    """The error if there is nothing to label."""
    if not version.manifest.rows:
        return UsageError(f"{version.reference} has no rows", "there is nothing to label", "aifx data ls")
    what = f"all rows of {version.reference} have a value in column {column}"
    return UsageError(
        what, "only rows without one are labelled", "--relabel shows them too; --column NAME asks another question"
    )


def queued_rows(version: Version, shown: Shown, rows: Sequence[str]) -> list[QueuedRow]:
    """The rows with these ids, in their order."""
    found = {
        row: QueuedRow(row, source, content)
        for table in select_rows(version, shown, rows)
        for row, source, content in contents_of(table, shown)
    }
    return [found[row] for row in rows]


@dataclass(frozen=True)
class Progress:
    """How far the labelling is.

    Attributes:
        rows: of the queue.
        done: rows that have as many labels as asked for.
        labelled: rows that one labeller has labelled.
        skipped: rows that they have skipped.
    """

    rows: int
    done: int
    labelled: int
    skipped: int


class LabelQueue:
    """Gives rows to labellers, each to as many as there are labels to collect.

    Args:
        overlap: labels per row, each by another labeller.
    """

    def __init__(self, rows: Iterable[QueuedRow], state: LabelState, overlap: int = 1) -> None:
        self.rows = {row.row: row for row in rows}
        self.overlap = overlap
        self._state = state
        self._leases: dict[str, dict[str, float]] = {}  # the ends, by labeller, by row

    def take(self, labeller: str, count: int) -> list[QueuedRow]:
        """Rows for a labeller: first those that they have got already."""
        now = time.monotonic()
        leased, free = [], []
        for row in self.rows:
            of_row = self._state.by_row.get(row, {})
            if labeller in of_row or self._count(of_row.values()) >= self.overlap:
                continue
            others = {one: end for one, end in self._leases.get(row, {}).items() if end > now and one not in of_row}
            if labeller in others:
                leased.append(row)
            elif self._count(of_row.values()) + len(others) < self.overlap:
                free.append(row)
            if len(leased) >= count:
                break
        taken = [*leased, *free][:count]
        for row in taken:
            self._leases.setdefault(row, {})[labeller] = now + LEASE_S
        return [self.rows[row] for row in taken]

    @staticmethod
    def _count(entries: Iterable[Any]) -> int:
        """Labels: a row that somebody skipped is left to others."""
        return sum(entry.label is not None for entry in entries)

    def progress(self, labeller: str) -> Progress:
        done = labelled = skipped = 0
        for row in self.rows:
            of_row = self._state.by_row.get(row, {})
            done += self._count(of_row.values()) >= self.overlap
            if (own := of_row.get(labeller)) is not None:
                labelled += own.label is not None
                skipped += own.label is None
        return Progress(len(self.rows), done, labelled, skipped)

    def history(self, labeller: str, most: int) -> list[str]:
        """Rows that a labeller labelled or skipped, the latest last."""
        own = [of_row[labeller] for row in self.rows if labeller in (of_row := self._state.by_row.get(row, {}))]
        return [entry.row for entry in sorted(own, key=lambda entry: self._state.ids[entry.id])[-most:]]
