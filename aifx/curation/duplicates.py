"""Clusters of duplicate rows: exact copies, and texts whose runs of words overlap.

1. Each shard is read once: a digest of each row, and for near duplicates its sketch, cut into bands.
2. Rows with the same digest are copies.
3. Rows that share a band are candidates. `near.join_near` verifies each pair with the shingles of both texts.
4. Pairs join clusters (union-find), so that a cluster may join two rows through a third.

All of it works in a folder, and within the limits of memory: DuckDB spills, and shingles are read from files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aifx.core.progress import report_progress
from aifx.curation.decisions import DECISIONS, first_rows
from aifx.curation.engine import open_engine
from aifx.curation.near import Bands, join_near, write_bands
from aifx.curation.processes import call_each
from aifx.curation.shards import read_shard
from aifx.curation.sketches import make_sketch
from aifx.curation.sql import identifier
from aifx.curation.step import Limits
from aifx.curation.union_find import Clusters
from aifx.curation.words import I64, text_buffer
from aifx.data.versions import RESERVED, ROW, Kind, ShardFile, Version

if TYPE_CHECKING:
    from pyarrow import Table


@dataclass(frozen=True)
class Shards:
    """The rows among which duplicates are searched for.

    Attributes:
        name: for messages.
        paths: of Parquet files.
        files: rows, bytes and digest of each.
    """

    name: str
    kind: Kind
    paths: tuple[Path, ...]
    files: tuple[ShardFile, ...]


@dataclass(frozen=True)
class DuplicateCounts:
    """Numbers of duplicates.

    Attributes:
        clusters: of two rows or more.
        exact: rows that are copies of a row of their cluster that comes before them.
        near: the other rows of clusters, without the first of each.
        pairs: that were verified.
        wide_buckets: of more candidates than are compared pair by pair.
    """

    rows: int
    clusters: int = 0
    exact: int = 0
    near: int = 0
    pairs: int = 0
    wide_buckets: int = 0


def shards_of(version: Version) -> Shards:
    """The rows of a version."""
    return Shards(version.reference, version.manifest.kind, version.shards, version.manifest.shards)


def find_duplicates(shards: Shards, near: float | None, work: Path, sketches: Path, limits: Limits) -> DuplicateCounts:
    """Write `work` / decisions.parquet: the rows of clusters of two or more.

    Its columns are `row` (number of the row), `cluster` (smallest `_row`), `rule` (null for the row to keep).

    Args:
        near: least Jaccard similarity of the shingles of two texts; None for copies only.
        sketches: the folder that keeps sketches.
    """
    _read_shards(shards, near, work, sketches, limits)
    clusters = Clusters(int(first_rows(shards.files)[-1]))
    pairs = wide = 0
    with open_engine(work, limits.half) as engine:
        _join_copies(engine, work, clusters)
        copies = clusters.labels()
        if near is not None:
            pairs, wide = join_near(engine, shards.paths, shards.files, near, clusters, work, sketches, limits)
        return _decide(engine, work, clusters.labels(), copies, pairs, wide)


def _read_shards(shards: Shards, near: float | None, work: Path, sketches: Path, limits: Limits) -> None:
    for name in ("digests", "bands"):
        (work / name).mkdir(parents=True)
    items = list(
        zip(range(len(shards.paths)), shards.paths, shards.files, first_rows(shards.files).tolist(), strict=False)
    )
    bands = Bands.at(near) if near is not None else None
    activity = f"{'sketching' if bands else 'reading'} {shards.name}"
    with report_progress(activity, sum(file.bytes for file in shards.files), "bytes") as progress:
        read = partial(_read_one, shards.kind, bands, work, sketches)
        for index, _ in call_each(read, items, limits.workers):
            progress.advance(shards.files[index].bytes)


def _read_one(
    kind: Kind, bands: Bands | None, work: Path, sketches: Path, item: tuple[int, Path, ShardFile, int]
) -> None:
    """Write the digests of a shard's rows and, for near duplicates, the bands of their sketches."""
    import pyarrow as pa
    from pyarrow import parquet

    index, path, file, first = item
    rows = read_shard(path, {"text": [ROW, "text"], "images": [ROW, "image"], "table": None}[kind])
    digests = row_digests(rows, kind)
    numbers = np.arange(first, first + len(rows), dtype=np.int64)
    table = pa.table({"row": numbers, ROW: rows[ROW].cast(pa.string()), "a": digests[:, 0], "b": digests[:, 1]})
    parquet.write_table(table, work / "digests" / f"{index:05d}.parquet", compression="lz4")
    if bands is not None:
        write_bands(make_sketch(sketches, path, file), numbers, bands, work / "bands" / f"{index:05d}.parquet")


def row_digests(rows: Table, kind: Kind) -> Any:
    """128 bits of a SHA-256 for each row, [rows, 2]: of its text, of its image's file, or of a table's own columns."""
    column = rows["text" if kind == "text" else "image"] if kind != "table" else _row_texts(rows)
    parts = []
    for chunk in column.chunks:
        data, offsets = text_buffer(chunk)
        view, ends = memoryview(data), offsets.tolist()
        parts += [hashlib.sha256(view[begin:end]).digest()[:16] for begin, end in pairwise(ends)]
    return np.frombuffer(b"".join(parts), np.int64).reshape(-1, 2)


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


def _join_copies(engine: Any, work: Path, clusters: Clusters) -> None:
    """Join the rows that have the same digest."""
    source = f"read_parquet('{work}/digests/*.parquet')"
    query = f"""
        SELECT min(row) OVER (PARTITION BY a, b) AS first, row
        FROM {source} SEMI JOIN (SELECT a, b FROM {source} GROUP BY a, b HAVING count(*) > 1) USING (a, b)
    """
    for batch in engine.sql(query).to_arrow_reader(1 << 20):
        clusters.join(batch["first"].to_numpy(), batch["row"].to_numpy())


def _decide(engine: Any, work: Path, labels: I64, copies: I64, pairs: int, wide: int) -> DuplicateCounts:
    """Write the decisions. Of a cluster, the row with the smallest `_row` is kept: by file, then by number."""
    import pyarrow as pa

    sizes = np.bincount(labels, minlength=len(labels)) if len(labels) else np.zeros(0, np.int64)
    members = np.flatnonzero(sizes[labels] > 1)
    engine.register("members", pa.table({"row": members, "label": labels[members], "copies": copies[members]}))
    order = f"""regexp_replace({ROW}, '-[0-9]+$', ''), length({ROW}), {ROW}"""
    engine.execute(f"""
        COPY (
            SELECT row, first_value({ROW}) OVER (PARTITION BY label ORDER BY {order}) AS cluster,
                CASE WHEN row_number() OVER (PARTITION BY label ORDER BY {order}) = 1 THEN NULL
                     WHEN row_number() OVER (PARTITION BY copies ORDER BY {order}) > 1 THEN 'exact'
                     ELSE 'near' END AS rule
            FROM read_parquet('{work}/digests/*.parquet') JOIN members USING (row)
            ORDER BY row
        ) TO '{work / DECISIONS}' (FORMAT parquet, ROW_GROUP_SIZE 10000)
    """)
    counts = dict(engine.execute(f"SELECT rule, count(*) FROM '{work / DECISIONS}' GROUP BY rule").fetchall())
    return DuplicateCounts(len(labels), counts.get(None, 0), counts.get("exact", 0), counts.get("near", 0), pairs, wide)
