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
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import Table

from aifx.core.calls import call_each
from aifx.core.digests import Sha256
from aifx.core.progress import report_progress
from aifx.curation.near import Bands, Clusters, Keys, join_near, key_file, write_keys
from aifx.curation.sketches import sketching
from aifx.curation.step import Limits, by_shard, numbered_parts, write_decisions
from aifx.curation.words import I64, U64, text_buffer
from aifx.data.chat.lines import equal_content
from aifx.data.names import CHAT, RESERVED, ROW, Kind
from aifx.data.versions.manifest import ShardFile, Version
from aifx.data.versions.shards import return_memory
from aifx.data.versions.sql import identifier

DIGESTS, BANDS = "digests", "bands"
MEMBER_BYTES = 256
"""Of memory for each row of a cluster that is decided about."""


def find_duplicates(version: Version, near: float | None, work: Path, sketches: Path, limits: Limits) -> dict[str, int]:
    """Write decisions about the rows of clusters of two or more.

    Their columns are `row` (number of the row), `cluster` (smallest `_row`), `rule` (null for the row to keep).

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


def _read_shards(version: Version, near: float | None, work: Path, sketches: Path, limits: Limits) -> None:
    for name in (DIGESTS, BANDS):
        (work / name).mkdir(parents=True)
    files = version.manifest.shards
    items = list(zip(range(len(files)), version.shards, files, strict=True))
    bands = Bands.at(near) if near is not None else None
    read = partial(_read_one, version.manifest.kind, bands, work, sketches)
    activity = f"{'sketching' if bands else 'reading'} {version.reference}"
    with report_progress(activity, sum(file.bytes for file in files), "bytes") as progress:
        for index, _ in call_each(read, items, limits.workers, begin=return_memory):
            progress.advance(files[index].bytes)


def _read_one(kind: Kind, bands: Bands | None, work: Path, sketches: Path, item: tuple[int, Path, ShardFile]) -> None:
    """Write the digests of a shard's rows and, for near duplicates, the bands of their sketches."""
    index, path, file = item
    columns = {"text": ["text"], "images": ["image"], "table": None, "chat": [CHAT]}[kind]
    with ExitStack() as stack:
        digest_file = stack.enter_context(open(key_file(work / DIGESTS, index), "wb"))
        if bands is not None:
            band_file = stack.enter_context(open(key_file(work / BANDS, index), "wb"))
            sketch = stack.enter_context(sketching(sketches, file))
        for first, rows in numbered_parts(path, columns):
            write_keys(digest_file, file.rows, first, row_digests(rows, kind))
            if bands is not None:
                write_keys(band_file, file.rows, first, bands.keys(sketch(rows["text"])))


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
    for halves, rows, others in digests.shared(0, 1, limits.spare_bytes):
        is_first = np.ones(len(rows), bool)
        is_first[1:] = (halves[1:] != halves[:-1]) | (others[1:] != others[:-1])
        firsts = rows[is_first]
        clusters.join(firsts[np.cumsum(is_first) - 1], rows)


def _decide(version: Version, work: Path, labels: I64, copies: I64, limits: Limits) -> Counter[str | None]:
    """Write the decisions. Of a cluster, the row with the smallest `_row` is kept: by file, then by number.

    Returns how often there is each rule.
    """
    sizes = np.bincount(labels, minlength=len(labels)) if len(labels) else np.zeros(0, np.int64)
    members = np.flatnonzero(sizes[labels] > 1)
    parts = 1 + len(members) * MEMBER_BYTES // limits.spare_bytes
    counts: Counter[str | None] = Counter()
    for part in range(parts):
        rows = members[labels[members] % parts == part]
        rules = _decide_some(rows, _ids_of(rows, version), labels[rows], copies[rows], work, part)
        counts.update(rules.to_pylist())
    return counts


def _decide_some(rows: I64, ids: Any, labels: I64, copies: I64, work: Path, part: int) -> Any:
    """Write the decisions about all rows of some clusters. Returns the rules."""
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


def _ids_of(rows: I64, version: Version) -> Any:
    """The `_row` of rows with increasing numbers."""
    found = [pa.array([], pa.string())]
    for shard, own in by_shard(rows, version.manifest.shards):
        for first, part in numbered_parts(version.shards[shard], [ROW]):
            begin, end = np.searchsorted(own, (first, first + len(part)))
            found += part[ROW].take(pa.array(own[begin:end] - first)).cast(pa.string()).chunks
    return pa.concat_arrays(found)
