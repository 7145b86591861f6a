"""Steps that decide about rows with all of them in view, and then apply the decisions to each shard."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aifx.curation.step import Limits, Outcome, Step
from aifx.curation.words import I64
from aifx.data.names import ROW
from aifx.data.versions.shards import dropped_rows, read_parts

if TYPE_CHECKING:
    from pyarrow import Table

    from aifx.data.versions.manifest import ShardFile

DECISIONS = "decisions"
"""The folder of the decisions that `prepare` writes."""


@dataclass(frozen=True)
class DecidedStep(Step):
    """A step that applies decisions to the rows of its parent, a few megabytes of a shard at a time."""

    def tasks(self) -> Sequence[tuple[str, int]]:
        return [(shard.name, shard.bytes) for shard in self.parents[0].manifest.shards]

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        shards = self.parents[0].manifest.shards
        decisions = read_decisions(work, int(first_rows(shards)[task]), shards[task].rows)
        first = 0
        for rows in read_parts(self.parents[0].shards[task]):
            yield self.apply(rows, decisions_about(decisions, first, len(rows)))
            first += len(rows)

    @abstractmethod
    def apply(self, rows: Table, decisions: Table) -> Outcome:
        """Sort some rows into kept and dropped ones. `row` of the decisions counts from the first of them."""


def first_rows(shards: Sequence[ShardFile]) -> I64:
    """[shards + 1] the number of each shard's first row, counted from the first shard, and the number of all rows."""
    return np.concatenate([[0], np.cumsum([shard.rows for shard in shards])]).astype(np.int64)


def write_decisions(work: Path, decisions: Table, part: int = 0) -> None:
    """Write decisions, or a part of them, ordered by `row`, the row's number over all shards from 0."""
    from pyarrow import parquet

    (work / DECISIONS).mkdir(exist_ok=True)
    parquet.write_table(decisions, work / DECISIONS / f"{part:05d}.parquet", row_group_size=10_000)


def read_decisions(work: Path, first: int, rows: int) -> Table:
    """The decisions about `rows` rows from the number `first`; `row` counts from there."""
    import pyarrow as pa
    from pyarrow import parquet

    found = []
    for path in sorted((work / DECISIONS).iterdir()):
        with parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                numbers = file.metadata.row_group(group).column(0).statistics
                if numbers is not None and numbers.min < first + rows and numbers.max >= first:
                    found.append(file.read_row_group(group, use_threads=False))
            if not found:
                found.append(file.schema_arrow.empty_table())
    return decisions_about(pa.concat_tables(found).sort_by("row"), first, rows)


def decisions_about(decisions: Table, first: int, rows: int) -> Table:
    """Those about `rows` rows from the number `first`; `row` counts from there."""
    import pyarrow as pa

    numbers = decisions["row"].to_numpy()
    begin, end = np.searchsorted(numbers, (first, first + rows))
    found = decisions.slice(begin, end - begin)
    return found.set_column(0, "row", pa.array(numbers[begin:end] - first, pa.int64()))


def without_dropped(rows: Table, decisions: Table, twin: str) -> Outcome:
    """Some rows without those for which the decisions have a `rule`.

    Args:
        twin: the column of the decisions with the twin of a dropped row.
    """
    import pyarrow as pa

    decisions = decisions.filter(decisions["rule"].is_valid())
    places = decisions["row"].to_numpy()
    keep = np.ones(len(rows), bool)
    keep[places] = False
    ids = rows[ROW].take(pa.array(places, pa.int64()))
    return Outcome(rows.filter(pa.array(keep)), dropped_rows(ids, decisions["rule"], decisions[twin]))
