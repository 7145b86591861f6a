"""Clusters of duplicate rows: exact copies, and texts whose runs of words overlap.

1. Each shard is read once: a digest of each row, and for near duplicates its sketch, cut into bands.
2. Rows with the same digest are copies.
3. Rows that share a band are candidates. `near.join_near` verifies each pair with the shingles of both texts.
4. Pairs join clusters (union-find), so that a cluster may join two rows through a third.

All of it works in a folder, and within the limits of memory: keys are sorted in parts, and shingles are read from
files.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aifx.core.calls import call_each
from aifx.core.digests import Sha256
from aifx.core.progress import report_progress
from aifx.curation.decisions import first_rows, write_decisions
from aifx.curation.near import Bands, join_near
from aifx.curation.shared_keys import Keys, write_keys
from aifx.curation.sketches import sketching
from aifx.curation.step import Limits
from aifx.curation.union_find import Clusters
from aifx.curation.words import I64, U64, text_buffer
from aifx.data.chat.lines import equal_content
from aifx.data.names import CHAT, RESERVED, ROW, Kind
from aifx.data.versions.manifest import ShardFile, Version
from aifx.data.versions.shards import read_parts, return_memory
from aifx.data.versions.sql import identifier

if TYPE_CHECKING:
    from pyarrow import Table

DIGESTS, BANDS = "digests", "bands"
MEMBER_BYTES = 256
"""Of memory for each row of a cluster that is decided about."""


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
    """Write decisions about the rows of clusters of two or more.

    Its columns are `row` (number of the row), `cluster` (smallest `_row`), `rule` (null for the row to keep).

    Args:
        near: least Jaccard similarity of the shingles of two texts; None for copies only.
        sketches: the folder that keeps sketches.
    """
    _read_shards(shards, near, work, sketches, limits)
    firsts = first_rows(shards.files)
    clusters = Clusters(int(firsts[-1]))
    _join_copies(Keys(_key_files(work / DIGESTS, shards), firsts), clusters, limits)
    copies = clusters.labels()
    pairs = wide = 0
    if near is not None:
        keys = Keys(_key_files(work / BANDS, shards), firsts)
        pairs, wide = join_near(keys, shards.paths, shards.files, near, clusters, work, sketches, limits)
    return _decide(shards, work, clusters.labels(), copies, pairs, wide, limits)


def _key_files(folder: Path, shards: Shards) -> list[Path]:
    return [folder / f"{index:05d}.u64" for index in range(len(shards.files))]


def _read_shards(shards: Shards, near: float | None, work: Path, sketches: Path, limits: Limits) -> None:
    for name in (DIGESTS, BANDS):
        (work / name).mkdir(parents=True)
    digests, band_files = (_key_files(work / name, shards) for name in (DIGESTS, BANDS))
    items = list(zip(shards.paths, shards.files, digests, band_files, strict=True))
    bands = Bands.at(near) if near is not None else None
    activity = f"{'sketching' if bands else 'reading'} {shards.name}"
    with report_progress(activity, sum(file.bytes for file in shards.files), "bytes") as progress:
        for index, _ in call_each(
            partial(_read_one, shards.kind, bands, sketches), items, limits.workers, begin=return_memory
        ):
            progress.advance(shards.files[index].bytes)


def _read_one(kind: Kind, bands: Bands | None, sketches: Path, item: tuple[Path, ShardFile, Path, Path]) -> None:
    """Write the digests of a shard's rows and, for near duplicates, the bands of their sketches."""
    path, file, digest_path, band_path = item
    columns = {"text": ["text"], "images": ["image"], "table": None, "chat": [CHAT]}[kind]
    with ExitStack() as stack:
        digest_file = stack.enter_context(open(digest_path, "wb"))
        if bands is not None:
            band_file = stack.enter_context(open(band_path, "wb"))
            sketch = stack.enter_context(sketching(sketches, file))
        first = 0
        for rows in read_parts(path, columns):
            write_keys(digest_file, file.rows, first, row_digests(rows, kind))
            if bands is not None:
                write_keys(band_file, file.rows, first, bands.keys(sketch(rows["text"])))
            first += len(rows)


def row_digests(rows: Table, kind: Kind) -> list[U64]:
    """128 bits of a SHA-256 for each row, in two halves: of its text, its image's file, a table's own columns, or the
    values in a chat's JSON."""
    data, offsets = text_buffer(_contents(rows, kind))
    view, ends = memoryview(data), offsets.tolist()
    digests = b"".join([Sha256(view[begin:end]).digest()[:16] for begin, end in pairwise(ends)])
    return list(np.frombuffer(digests, np.uint64).reshape(-1, 2).T)


def _contents(rows: Table, kind: Kind) -> Any:
    if kind == "chat":
        import pyarrow as pa

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
    for halves, rows, others in digests.shared(0, 1, limits.spare_bytes):
        is_first = np.ones(len(rows), bool)
        is_first[1:] = (halves[1:] != halves[:-1]) | (others[1:] != others[:-1])
        firsts = rows[is_first]
        clusters.join(firsts[np.cumsum(is_first) - 1], rows)


def _decide(
    shards: Shards, work: Path, labels: I64, copies: I64, pairs: int, wide: int, limits: Limits
) -> DuplicateCounts:
    """Write the decisions. Of a cluster, the row with the smallest `_row` is kept: by file, then by number."""
    sizes = np.bincount(labels, minlength=len(labels)) if len(labels) else np.zeros(0, np.int64)
    members = np.flatnonzero(sizes[labels] > 1)
    parts = 1 + len(members) * MEMBER_BYTES // limits.spare_bytes
    counts: Counter[str | None] = Counter()
    for part in range(parts):
        rows = members[labels[members] % parts == part]
        rules = _decide_some(rows, _ids_of(rows, shards), labels[rows], copies[rows], work, part)
        counts.update(rules.to_pylist())
    return DuplicateCounts(len(labels), counts[None], counts["exact"], counts["near"], pairs, wide)


def _decide_some(rows: I64, ids: Any, labels: I64, copies: I64, work: Path, part: int) -> Any:
    """Write the decisions about all rows of some clusters. Returns the rules."""
    import pyarrow as pa
    import pyarrow.compute as pc

    files = pc.replace_substring_regex(ids, "-[0-9]+$", "")
    keys = pa.table({"file": files, "length": pc.binary_length(ids), "id": ids})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]).to_numpy()
    _, first, cluster = np.unique(labels[order], return_index=True, return_inverse=True)
    clusters = np.empty(len(rows), np.int64)
    clusters[order] = order[first][cluster]
    is_copy = np.ones(len(rows), bool)
    is_copy[order[np.unique(copies[order], return_index=True)[1]]] = False
    rules = pc.if_else(pa.array(is_copy), "exact", "near")
    rules = pc.if_else(pa.array(clusters == np.arange(len(rows))), pa.scalar(None, pa.string()), rules)
    write_decisions(work, pa.table({"row": rows, "cluster": ids.take(pa.array(clusters)), "rule": rules}), part)
    return rules


def _ids_of(rows: I64, shards: Shards) -> Any:
    """The `_row` of rows with increasing numbers."""
    import pyarrow as pa

    firsts = first_rows(shards.files)
    cuts = np.searchsorted(rows, firsts)
    found = [pa.array([], pa.string())]
    for index, path in enumerate(shards.paths):
        if cuts[index] < cuts[index + 1]:
            own = rows[cuts[index] : cuts[index + 1]] - firsts[index]
            begun = 0
            for part in read_parts(path, [ROW]):
                begin, end = np.searchsorted(own, (begun, begun + len(part)))
                ids = part[ROW].take(pa.array(own[begin:end] - begun)).cast(pa.string())
                found += ids.chunks
                begun += len(part)
    return pa.concat_arrays(found)
