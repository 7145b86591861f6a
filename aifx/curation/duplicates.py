"""Clusters of duplicate rows, exact copies and texts whose runs of words overlap, and the steps that use them.

1. Each shard is read once: a digest of each row, and for near duplicates its sketch, cut into bands.
2. Rows with the same digest are copies.
3. Rows that share a band are candidates. `near.join_near` verifies each pair with the shingles of both texts.
4. Pairs join clusters (union-find), so that a cluster may join two rows through a third.

All of it works in a folder, and within the limits of memory: keys are sorted in parts, and shingles are read from
files. `dedupe` then drops or marks all rows of a cluster but one, and `split` sends them to one split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import Table

from aifx.core.calls import call_each
from aifx.core.digests import Hash64, Sha256, fraction_of
from aifx.core.errors import DataError, UsageError
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.curation.continuing import LastingStep, keep_dropped, keep_splits
from aifx.curation.near import (
    ROWS_AT_A_TIME,
    Bands,
    Clusters,
    KeptValues,
    Keys,
    join_near,
    key_file,
    open_sketches,
    sketch_of,
    sketch_rows,
    write_keys,
)
from aifx.curation.step import (
    Limits,
    Outcome,
    by_shard,
    numbered_parts,
    rewrite_decisions,
    set_column,
    without_dropped,
    write_decisions,
)
from aifx.curation.words import I64, U64, group_starts, text_buffer
from aifx.curation.work_folders import sketches_of
from aifx.data.chat.lines import equal_content
from aifx.data.names import CHAT, CLUSTER, RESERVED, ROW, SPLIT, Kind
from aifx.data.versions.made_steps import made_steps
from aifx.data.versions.manifest import ShardFile, StepRecord, Version
from aifx.data.versions.shards import return_memory
from aifx.data.versions.sql import identifier

DIGESTS, BANDS = "digests", "bands"
ROW_DIGESTS = 1
"""Version of the digests of rows. Raise it if a row would get another."""

DIGESTED_BYTES, SKETCHED_BYTES = 512 << 20, 96 << 20
"""Bytes of shards that are worth a process of their own: those that it reads in some seconds."""

MEMBER_BYTES = 256
"""Memory for each row of a cluster that is decided about."""


def find_duplicates(version: Version, near: float | None, work: Path, sketches: Path, limits: Limits) -> dict[str, int]:
    """Write decisions about the rows of clusters of two or more.

    Their columns are `row` (number of the row), `cluster` (smallest `_row`), `rule` (null for the row to keep), and
    `copy`, the same number for copies.

    Returns the numbers of `rows` and of `clusters`; of `exact` rows, copies of a row of their cluster that comes before
    them, and of `near` ones, the other rows of clusters without the first of each; of `pairs` that were verified, and
    of `wide_buckets`, those of more candidates than are compared pair by pair.

    Args:
        near: least Jaccard similarity of the shingles of two texts; None for copies only.
        sketches: the folder that keeps sketches.
    """
    _read_shards(version, near, work, sketches, limits)
    files = version.manifest.shards
    clusters = Clusters(sum(file.rows for file in files))
    _join_copies(Keys(work / DIGESTS, files), clusters, limits)
    copies = clusters.labels()
    pairs = wide = 0
    if near is not None:
        pairs, wide = join_near(version, Keys(work / BANDS, files), near, clusters, work, sketches, limits)
    rules = _decide(version, work, clusters.labels(), copies, limits)
    counts = {"clusters": rules[None], "exact": rules["exact"], "near": rules["near"]}
    return {"rows": len(copies), **counts, "pairs": pairs, "wide_buckets": wide}


def find_duplicates_by(
    rule: str,
    join: Callable[[Clusters], Mapping[str, Any]],
    version: Version,
    work: Path,
    sketches: Path,
    limits: Limits,
) -> dict[str, Any]:
    """Write decisions as `find_duplicates` does, with the pairs that `join` adds to the clusters of the copies.

    Returns the numbers of `rows`, of `clusters`, of `exact` rows and of those with the `rule`; and what `join` returns.
    """
    _read_shards(version, None, work, sketches, limits)
    files = version.manifest.shards
    clusters = Clusters(sum(file.rows for file in files))
    _join_copies(Keys(work / DIGESTS, files), clusters, limits)
    copies = clusters.labels()
    facts = join(clusters)
    rules = _decide(version, work, clusters.labels(), copies, limits, rule)
    return {"rows": len(copies), "clusters": rules[None], "exact": rules["exact"], rule: rules[rule], **facts}


def _read_shards(version: Version, near: float | None, work: Path, sketches: Path, limits: Limits) -> None:
    for name in (DIGESTS, BANDS):
        (work / name).mkdir(parents=True)
    (sketches / f"digests-{ROW_DIGESTS}").mkdir(parents=True, exist_ok=True)
    files = version.manifest.shards
    items = list(enumerate(files))
    bands = Bands.at(near) if near is not None else None
    read = partial(_read_one, version, bands, work, sketches)
    activity = f"{'sketching' if bands else 'reading'} {version.reference}"
    size = sum(file.bytes for file in files)
    workers = limits.for_work(size, SKETCHED_BYTES if bands else DIGESTED_BYTES).workers
    with report_progress(activity, size, "bytes") as progress:
        for index, _ in call_each(read, items, workers, begin=return_memory):
            progress.advance(files[index].bytes)


def _read_one(version: Version, bands: Bands | None, work: Path, sketches: Path, item: tuple[int, ShardFile]) -> None:
    """Write the digests of a shard's rows and, for near duplicates, the bands of their sketches.

    The shard itself is read if one of them is not kept.
    """
    index, file = item
    kind = version.manifest.kind
    columns = {"text": ["text"], "images": ["image"], "table": None, "chat": [CHAT]}[kind]
    kept = digests_of(sketches, file), sketch_of(sketches, file)
    is_read = any(each.begin is None for each in kept[: 1 if bands is None else 2])
    parts: Iterable[tuple[int, Any]] = numbered_parts(version.shards[index], columns) if is_read else _places(file.rows)
    with ExitStack() as stack:
        digest_file = stack.enter_context(open(key_file(work / DIGESTS, index), "wb"))
        digest = stack.enter_context(kept[0].reading(lambda rows: np.stack(row_digests(rows, kind), axis=1)))
        if bands is not None:
            band_file = stack.enter_context(open(key_file(work / BANDS, index), "wb"))
            sketch = stack.enter_context(kept[1].reading(sketch_rows))
        for first, rows in parts:
            write_keys(digest_file, file.rows, first, list(digest(rows).T))
            if bands is not None:
                write_keys(band_file, file.rows, first, bands.keys(sketch(rows)))


def digests_of(folder: Path, shard: ShardFile) -> KeptValues:
    """The digests of the rows of a shard, which `row_digests` computes."""
    return KeptValues(folder / f"digests-{ROW_DIGESTS}" / f"{shard.sha256}.npy", shard.rows, 2, "<u8")


def _places(rows: int) -> Iterator[tuple[int, range]]:
    """The numbers of some rows at a time, and the first of them."""
    for first in range(0, rows, ROWS_AT_A_TIME):
        yield first, range(first, min(first + ROWS_AT_A_TIME, rows))


def row_digests(rows: Table, kind: Kind) -> list[U64]:
    """128 bits of a SHA-256 for each row, in two halves: of its text, its image's file, a table's own columns, or the
    values in a chat's JSON."""
    data, offsets = text_buffer(_contents(rows, kind))
    view, ends = memoryview(data), offsets.tolist()
    digests = b"".join([Sha256(view[begin:end]).digest()[:16] for begin, end in pairwise(ends)])
    return list(np.frombuffer(digests, np.uint64).reshape(-1, 2).T)


def _contents(rows: Table, kind: Kind) -> Any:
    if kind == "chat":
        return pa.chunked_array([pa.array(map(equal_content, rows[CHAT].to_pylist()), pa.string())])
    return _row_texts(rows) if kind == "table" else rows["text" if kind == "text" else "image"]


def _row_texts(rows: Table) -> Any:
    """A text for each row of a table, which two rows share only if they have the same values."""
    import duckdb

    names = sorted(name for name in rows.column_names if name not in RESERVED)
    values = [f"{identifier(name)}::VARCHAR" for name in names]
    parts = [f"coalesce(strlen({value}) || ':' || {value}, '-')" for value in values]
    with duckdb.connect(":memory:", config={"threads": 1}) as engine:
        engine.register("found", rows)
        query = f"SELECT concat({', '.join(parts) or repr('')}) AS text FROM found"
        return engine.sql(query).to_arrow_table()["text"]


def _join_copies(digests: Keys, clusters: Clusters, limits: Limits) -> None:
    """Join the rows that have the same digest."""
    for upper, rows, lower in digests.shared(0, 1, limits.spare_bytes):
        is_first = group_starts(upper) | group_starts(lower)
        firsts = rows[is_first]
        clusters.join(firsts[np.cumsum(is_first) - 1], rows)


def _decide(
    version: Version, work: Path, labels: I64, copies: I64, limits: Limits, rule: str = "near"
) -> Counter[str | None]:
    """Write the decisions. Of a cluster, the row with the smallest `_row` is kept: by file, then by number.

    Returns how often there is each rule.

    Args:
        rule: of the rows that are no copies.
    """
    members = np.flatnonzero(np.bincount(labels)[labels] > 1)
    parts = 1 + len(members) * MEMBER_BYTES // limits.spare_bytes
    counts: Counter[str | None] = Counter()
    for part in range(parts):
        rows = members[labels[members] % parts == part]
        rules = _decide_some(rows, _ids_of(rows, version), labels[rows], copies[rows], work, part, rule)
        counts.update(rules.to_pylist())
    return counts


def _decide_some(rows: I64, ids: Any, labels: I64, copies: I64, work: Path, part: int, rule: str) -> Any:
    """Write the decisions about all rows of some clusters. Returns the rules."""
    files = pc.replace_substring_regex(ids, "-[0-9]+$", "")
    keys = pa.table({"file": files, "length": pc.binary_length(ids), "id": ids})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]).to_numpy()
    _, first, cluster = np.unique(labels[order], return_index=True, return_inverse=True)
    clusters = np.empty(len(rows), np.int64)
    clusters[order] = order[first][cluster]
    is_copy = np.ones(len(rows), bool)
    is_copy[order[np.unique(copies[order], return_index=True)[1]]] = False
    rules = pc.if_else(pa.array(is_copy), "exact", rule)
    rules = pc.if_else(pa.array(clusters == np.arange(len(rows))), pa.scalar(None, pa.string()), rules)
    decisions = {"row": rows, "cluster": ids.take(pa.array(clusters)), "rule": rules, "copy": copies}
    write_decisions(work, pa.table(decisions), part)
    return rules


def _ids_of(rows: I64, version: Version) -> Any:
    """The `_row` of rows with increasing numbers."""
    found = [pa.array([], pa.string())]
    for shard, own in by_shard(rows, version.manifest.shards):
        for first, part in numbered_parts(version.shards[shard], [ROW]):
            begin, end = np.searchsorted(own, (first, first + len(part)))
            found += part[ROW].take(pa.array(own[begin:end] - first)).cast(pa.string()).chunks
    return pa.concat_arrays(found)


@dataclass(frozen=True)
class Dedupe(LastingStep):
    """Keeps one row of each cluster of duplicates, and writes the cluster of each row.

    Of earlier rows it keeps those that it kept before. With `mark` it decides nothing, and clusters are those of now.

    Attributes:
        near: least Jaccard similarity of near duplicates; None for exact copies only.
        mark: keep all rows.
    """

    near: float | None
    mark: bool = False

    name = "dedupe"
    rule: ClassVar[str] = "near"
    """The rule of dropped rows that are no copies."""

    def continues(self, record: StepRecord) -> int:
        return 0 if self.mark else super().continues(record)

    @property
    def task_settings(self) -> Mapping[str, Any]:
        return {"mark": self.mark}

    @property
    def added_columns(self) -> Mapping[str, str]:
        return {CLUSTER: "string"}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        facts = self.find(work, limits)
        if self.earlier is not None:
            kept = keep_dropped(self.parents[0], self.earlier, self.link, self.rule, work, limits)
            return {**facts, **kept}
        rewrite_decisions(work, lambda rows: rows.filter(rows["rule"].is_valid()).select(["row", "cluster", "rule"]))
        return facts

    def find(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        """Write the decisions about clusters, as `find_duplicates` does. Returns facts."""
        return find_clusters(self.parents[0], self.near, work, limits)

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        rows = with_clusters(rows, decisions)
        if self.mark:
            return Outcome(rows)
        return without_dropped(rows, decisions, twin="cluster")


def find_clusters(version: Version, near: float | None, work: Path, limits: Limits) -> dict[str, int]:
    """Find the duplicates of a version, with the sketches that its data set keeps.

    Raises UsageError for near duplicates of what is not text, SketchesOutdated.
    """
    name = version.manifest.name
    if near is not None and version.manifest.kind != "text":
        why = f"{version.reference} holds {version.manifest.kind}, whose exact copies aifx finds"
        raise UsageError("--near is for text", why, f"aifx data dedupe {name}")
    sketches = sketches_of(work)
    if near is not None:
        open_sketches(sketches, f"aifx data dedupe {version.reference} --near {near:g} --rebuild-sketches")
    return find_duplicates(version, near, work, sketches, limits)


def with_clusters(rows: Table, decisions: Table) -> Table:
    """The rows with the column `_cluster`: a row that has no duplicates is its own."""
    clusters = rows[ROW].cast(pa.string()).to_numpy(zero_copy_only=False).astype(object)
    clusters[decisions["row"].to_numpy()] = decisions["cluster"].to_numpy(zero_copy_only=False)
    return set_column(rows, CLUSTER, pa.array(clusters, pa.string()))


@dataclass(frozen=True)
class Split(LastingStep):
    """Writes `_split`: a hash of a row's duplicate cluster decides, so that duplicates are in one split.

    An earlier row stays where it is, and decides for the new rows of its cluster.

    Attributes:
        validation: share of the clusters.
        test: share of the clusters.
        near: least Jaccard similarity of near duplicates; None for exact copies only.
        seed: of the hash.
    """

    validation: float
    test: float
    near: float | None
    seed: int = 0

    name = "split"

    @property
    def task_settings(self) -> Mapping[str, Any]:
        shares = {"validation": self.validation, "test": self.test, "seed": self.seed}
        return {**shares, "has_clusters": has_clusters(self.parents[0], self.near)}

    @property
    def added_columns(self) -> Mapping[str, str]:
        return {CLUSTER: "string", SPLIT: "string"}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        parent, facts = self.parents[0], dict[str, Any]()
        is_clustered = has_clusters(parent, self.near)
        if is_clustered:
            nothing = {"row": pa.array([], pa.int64()), "cluster": pa.array([], pa.string())}
            write_decisions(work, pa.table({**nothing, "split": pa.array([], pa.string())}))
        else:
            found = find_clusters(parent, self.near, work, limits)
            clustered = sum(found[name] for name in ("clusters", "exact", "near"))
            facts = {"clusters": found["clusters"], "clustered_rows": clustered}
            rewrite_decisions(work, _without_rules)
        if self.earlier is not None:
            facts |= keep_splits(parent, self.earlier, self.split_of, work, limits, is_clustered=is_clustered)
        self._check(work)
        return facts

    def _check(self, work: Path) -> None:
        """Raise DataError if a split that has a share gets no row."""
        parent, empty = self.parents[0], {"train", "validation", "test"}
        empty -= {name for name, share in (("validation", self.validation), ("test", self.test)) if not share}
        columns = [name for name in (ROW, CLUSTER) if name in parent.manifest.columns]
        for task in range(len(parent.shards)):
            if not empty:
                return
            for part, decisions in self.decided_rows(task, work, columns):
                empty -= set(self._splits(part, decisions)[1])
        if not parent.manifest.rows:
            hint = "loosen these steps, such as the rules of clean"
            raise DataError(f"{parent.reference} has no row to split", "the steps before it left none", hint)
        if empty:
            rows = counted(parent.manifest.rows, "row")
            why = f"a hash sends each cluster to a split, and none of {rows} is in this one"
            hint = f"aifx data split {parent.manifest.name} --seed {self.seed + 1}, or a larger share"
            raise DataError(f"no row of {parent.reference} is for {', '.join(sorted(empty))}", why, hint)

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        rows, splits = self._splits(rows, decisions)
        return Outcome(set_column(rows, SPLIT, pa.array(splits, pa.string())), facts=Counter(splits))

    def _splits(self, rows: Table, decisions: Table) -> tuple[Table, list[str]]:
        """The rows with their clusters, and the split of each."""
        if not has_clusters(self.parents[0], self.near):
            rows = with_clusters(rows, decisions)
        splits = [self.split_of(cluster) for cluster in rows[CLUSTER].to_pylist()]
        for row, split in zip(decisions["row"].to_pylist(), decisions["split"].to_pylist(), strict=True):
            splits[row] = split or splits[row]
        return rows, splits

    def split_of(self, cluster: str) -> str:
        """The split of a cluster without earlier rows."""
        share = fraction_of(Hash64(f"{self.seed} {cluster}".encode()).digest())
        return "test" if share < self.test else "validation" if share < self.test + self.validation else "train"


def _without_rules(decisions: Table) -> Table:
    """The decisions of `Split`: rows whose cluster has another name than themselves."""
    rows = decisions.filter(decisions["rule"].is_valid()).select(["row", "cluster"])
    return rows.append_column("split", pa.nulls(len(rows), pa.string()))


def has_clusters(version: Version, near: float | None) -> bool:
    """Whether `_cluster` of a version holds the clusters at this similarity or a lower one."""
    made = made_steps(version.manifest)[-1]
    step = made.made_by
    if CLUSTER not in version.manifest.columns or step.name not in ("dedupe", "split"):
        return False
    theirs = step.settings.get("near")
    return near is None or (theirs is not None and theirs <= near)
