"""Decisions that last: rows that a step decided about before keep their place when a data set grows.

`dedupe` and `split` of a version that extends another look for the version that the same step made of the earlier rows.
Rows that were kept stay kept, rows that were dropped stay dropped, and each row stays in its split. Only new rows are
decided about, by the earlier rows that they resemble.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from aifx.core.json_values import plain
from aifx.curation.step import DECISIONS, DecidedStep, Limits, Step, first_rows, write_decisions
from aifx.data.names import ROW
from aifx.data.readers.arrow import pa, pc
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import CONTINUES, REPLACES, Origin, StepRecord, Version
from aifx.data.versions.sql import RowTable, open_tables, quoted

ADD = "add"
BATCH_ROWS = 50_000
T = TypeVar("T", bound=Step)


@dataclass(frozen=True)
class LastingStep(DecidedStep):
    """A step whose decisions about earlier rows stay.

    Attributes:
        parents: the version, and the one with the earlier decisions if there is one.
        link: the number of the step among those that made that version together; None if it alone did.
    """

    link: int | None = field(default=None, kw_only=True)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {name: value for name, value in super().settings.items() if name != "link"}

    @property
    def earlier(self) -> Version | None:
        return self.parents[1] if len(self.parents) > 1 else None

    @property
    def sources(self) -> Any:
        return self.parents[0].manifest.sources

    def continues(self, record: StepRecord) -> int:
        return int((record.name, plain(record.settings)) == (self.name, plain(self.settings)))


def continued(step: T, catalog: Catalog, origins: Mapping[str, Origin]) -> T:
    """The step with the version whose decisions it keeps as its last parent, if there is one.

    That is a version of the data set which a step made that this one continues, from rows that were there before its
    parent's last files were added. Of several, the one of the newest rows, and if possible made by the same steps.

    Args:
        origins: of the versions of the data set.

    Raises DataError if it is damaged.
    """
    parent = step.parents[0].manifest if len(step.parents) == 1 else None
    if parent is None or not parent.rows or not step.continues(step.record):
        return step
    adds = [one.reference for one in _route(origins, parent.origin) if one.step.name == ADD]
    ages = {reference: age for age, reference in enumerate(adds[1:])}
    ours, _ = _since_add(origins, parent.origin)
    found = []
    for origin in origins.values() if ages else ():
        if count := step.continues(origin.made_by):
            (_, *theirs), base = _since_add(origins, origin)
            if base in ages:
                differs = [one.name for one in theirs] != [one.name for one in ours], theirs != ours
                is_compact = origin.step != origin.made_by
                found.append((ages[base], -count, *differs, is_compact, origin.reference))
    return replace(step, parents=(*step.parents, catalog.open(min(found)[-1]))) if found else step


def _route(origins: Mapping[str, Origin], origin: Origin | None) -> Iterator[Origin]:
    """A version and those that its rows came from, the newest first, up to one that was deleted.

    Before files that were added alone is the version that the name meant then: rows that stayed are in both.

    Those that only hold the rows of another in other shards are passed over.
    """
    seen: set[str] = set()  # no manifest was compared with its digest, so that they could name each other
    while origin is not None and origin.reference not in seen:
        seen.add(origin.reference)
        if origin.step == origin.made_by:
            yield origin
        before = origin.step.settings.get(REPLACES, "")  # of files that were added alone, which have no parent
        origin = origins.get(next(iter(origin.row_parents), before))


def _since_add(origins: Mapping[str, Origin], origin: Origin) -> tuple[list[StepRecord], str]:
    """The steps on the route of a version before files were added, its own first, and the version with these files."""
    steps: list[StepRecord] = []
    for one in _route(origins, origin):
        if one.step.name == ADD:
            return steps, one.reference
        steps.append(one.step)
    return steps, ""


# How both work: DuckDB joins the rows of the version with those of the earlier one by `_row`, and the clusters that
# were found among all rows group them. It writes to the disk what exceeds the memory.

_PLACED = """placed AS (
    SELECT starts.first + rows.file_row_number AS n, rows._row {0} FROM rows JOIN starts USING (file_index)
)"""
_ORDER = "{{'file': regexp_replace({0}, '-[0-9]+$', ''), 'length': length({0}), 'id': {0}}}"
"""Rows of a cluster are ordered by file, then by number."""


def keep_dropped(
    parent: Version, earlier: Version, link: int | None, rule: str, work: Path, limits: Limits
) -> dict[str, Any]:
    """Rewrite the decisions of `dedupe` in `work`, so that rows of an earlier version stay kept or dropped.

    In a cluster with rows that were kept, these stay and all others are dropped. The twin of a row is the earlier one
    if that is still there, otherwise the first row of the cluster that was kept.

    Args:
        link: the number of the step among those that made the earlier version together; None if it alone did.
        rule: of dropped rows that are no copies.

    Returns facts: the numbers of dropped rows by rule, and the earlier version.
    """
    after, here = "", "true"
    if link is not None and earlier.dropped:  # with the column `step`, and changed rows, which have no rule
        after = f"UNION ALL SELECT _row FROM dropped WHERE step > {link} AND rule IS NOT NULL"
        here = f"step = {link} AND rule IS NOT NULL"
    sql = f"""WITH {_PLACED.format("")},
        stayed AS (SELECT _row FROM kept {after}),
        members AS (
            SELECT n, found.cluster, found.rule, copy, placed._row, stayed._row IS NOT NULL AS is_kept,
                gone.rule AS earlier_rule, gone.twin AS earlier_twin
            FROM found JOIN placed ON found.row = n
            LEFT JOIN stayed ON stayed._row = placed._row
            LEFT JOIN (SELECT * FROM dropped WHERE {here}) gone ON gone._row = placed._row
        ),
        groups AS (SELECT cluster, min({_ORDER.format(ROW)}).id AS keeper FROM members WHERE is_kept GROUP BY cluster),
        copied AS (SELECT DISTINCT copy, true AS is_copied FROM members WHERE is_kept)
        SELECT m.n AS row,
            CASE WHEN keeper IS NULL THEN m.cluster WHEN twin._row IS NOT NULL THEN m.earlier_twin ELSE keeper END
                AS cluster,
            CASE WHEN keeper IS NULL THEN m.rule WHEN twin._row IS NOT NULL THEN m.earlier_rule
                WHEN m.rule = 'exact' OR is_copied THEN 'exact' ELSE {quoted(rule)} END AS rule
        FROM members m LEFT JOIN groups USING (cluster) LEFT JOIN copied USING (copy)
        LEFT JOIN members twin ON twin.is_kept AND twin._row = m.earlier_twin AND twin.cluster = m.cluster
        WHERE NOT m.is_kept AND (keeper IS NOT NULL OR m.rule IS NOT NULL) ORDER BY 1"""
    rules = {"exact": 0, rule: 0}

    def count(rows: Any) -> Any:
        for one in rules:
            rules[one] += rows["rule"].to_pylist().count(one)
        return rows

    _rewrite(sql, parent, earlier, work, limits, count)
    return {**rules, CONTINUES: earlier.manifest.whole_reference}


def keep_splits(
    parent: Version,
    earlier: Version,
    split_of: Callable[[str], str],
    work: Path,
    limits: Limits,
    *,
    is_clustered: bool = False,
) -> dict[str, Any]:
    """Rewrite the decisions of `split` in `work`, so that each row of an earlier version keeps its split.

    A new row goes to training if its cluster has an earlier training row, and otherwise to validation or the test if
    it has an earlier row there. A cluster keeps the name that it had.

    Args:
        split_of: the split of a cluster without earlier rows. Only other splits are written.
        is_clustered: whether `_cluster` of the parent has the clusters, and not the decisions.

    Returns facts: new rows whose clusters have earlier rows in several splits, and the earlier version.
    """
    cluster = "placed._cluster" if is_clustered else "coalesce(found.cluster, placed._row)"
    name = "NULL" if is_clustered else "groups.name"
    sql = f"""WITH {_PLACED.format(", rows._cluster" if is_clustered else "")},
        known AS (
            SELECT placed.n, placed._row AS id, {cluster} AS cluster, kept._split AS split, kept._cluster AS name
            FROM placed LEFT JOIN found ON found.row = placed.n LEFT JOIN kept ON kept._row = placed._row
        ),
        groups AS (
            SELECT cluster, min({_ORDER.format("known.name")}).id AS name, count(DISTINCT split) > 1 AS is_mixed,
                min(CASE split WHEN 'train' THEN 1 WHEN 'validation' THEN 2 ELSE 3 END) AS best
            FROM known WHERE split IS NOT NULL GROUP BY cluster
        )
        SELECT n AS row, id, coalesce({name}, known.cluster) AS cluster, split IS NULL AND is_mixed AS is_between,
            coalesce(split, ['train', 'validation', 'test'][best]) AS split
        FROM known LEFT JOIN groups USING (cluster)
        WHERE split IS NOT NULL OR best IS NOT NULL OR cluster <> id ORDER BY 1"""
    between = 0

    def sparse(rows: Any) -> Any:
        """Only what `Split` does not do by itself, so that new rows change nothing about the others."""
        nonlocal between
        between += rows["is_between"].to_pylist().count(True)
        clusters, splits = rows["cluster"].to_pylist(), rows["split"].to_pylist()
        is_other = [split is not None and split != split_of(one) for one, split in zip(clusters, splits, strict=True)]
        other = pc.if_else(pa.array(is_other, pa.bool_()), rows["split"], pa.scalar(None, pa.string()))
        rows = pa.table({"row": rows["row"], "cluster": rows["cluster"], "split": other, "id": rows["id"]})
        return rows.filter(pc.or_(pc.not_equal(rows["cluster"], rows["id"]), other.is_valid())).drop_columns("id")

    _rewrite(sql, parent, earlier, work, limits, sparse)
    return {"rows_between_splits": between, CONTINUES: earlier.manifest.whole_reference}


@dataclass(frozen=True)
class _Found(RowTable):
    """The decisions that a step made about all rows of a version, as a table."""

    folder: Path = Path()

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(sorted(self.folder.glob("*.parquet")))

    def check(self) -> None:
        """No manifest has these files."""


def _rewrite(
    sql: str, parent: Version, earlier: Version, work: Path, limits: Limits, change: Callable[[Any], Any]
) -> None:
    """Replace the decisions in `work` by the rows of a query, each part changed.

    Its tables are `rows` and `starts` (of the shards) of the parent, the decisions `found`, and `kept` and `dropped` of
    the earlier version.
    """
    found = work / "found"
    os.replace(work / DECISIONS, found)
    tables = {
        "rows": RowTable(parent, is_numbered=True),
        "found": _Found(parent, folder=found),
        "kept": RowTable(earlier),
        "dropped": RowTable(earlier, "dropped"),
    }
    starts = first_rows(parent.manifest.shards)[:-1]
    with open_tables(tables, limits.spare_bytes) as connection:
        connection.register("starts", pa.table({"file_index": list(range(len(starts))), "first": starts}))
        reader = connection.sql(sql).to_arrow_reader(BATCH_ROWS)
        write_decisions(work, change(reader.schema.empty_table()))
        for part, rows in enumerate(reader, 1):
            write_decisions(work, change(pa.Table.from_batches([rows])), part)
    shutil.rmtree(found)
