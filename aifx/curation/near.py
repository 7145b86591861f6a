"""Near duplicates: candidates that share a band of their sketches, each verified by the shingles of both texts."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aifx.core.progress import report_progress
from aifx.curation.decisions import first_rows
from aifx.curation.processes import call_each
from aifx.curation.shards import read_shard
from aifx.curation.sketches import NO_WORDS, PERMUTATIONS, SHINGLE_WORDS, make_sketch, text_batches
from aifx.curation.step import Limits
from aifx.curation.union_find import Clusters
from aifx.curation.words import I64, U64, find_words, mix, spread, word_runs
from aifx.data.versions import ShardFile

RECALL = 0.999
"""Least probability that two texts share a band if they are as similar as the threshold."""

SLACK = 4.0
"""Standard deviations by which the estimate of a pair may be below the threshold before the pair is left out."""

MOST_COMPARED = 1024
"""Rows of a bucket with which each of its rows is compared. In a wider one they are those that are next by sketch."""

PAIRS_AT_A_TIME = 1 << 16

JOINED = "joined.i64"
"""The pairs of rows that were found to be near duplicates: two numbers each."""


@dataclass(frozen=True)
class Bands:
    """Cuts a signature into bands.

    Attributes:
        rows: values of each band: two texts of Jaccard similarity s share a band with probability s**rows.
        count: of bands.
        threshold: the Jaccard similarity from which texts are near duplicates.
    """

    rows: int
    count: int
    threshold: float

    @staticmethod
    def at(threshold: float) -> Bands:
        """The longest bands, so the fewest candidates, that find texts of this similarity with probability `RECALL`."""
        found = Bands(1, PERMUTATIONS, threshold)
        for rows in range(2, PERMUTATIONS + 1):
            bands = Bands(rows, PERMUTATIONS // rows, threshold)
            if bands.recall(threshold) < RECALL:
                break
            found = bands
        return found

    def recall(self, similarity: float) -> float:
        """Probability that two texts of this similarity share a band."""
        return 1 - (1 - similarity**self.rows) ** self.count

    @property
    def names(self) -> list[str]:
        return [f"b{band:03d}" for band in range(self.count)]

    def keys(self, signatures: NDArray[np.uint32]) -> list[U64]:
        """Hashes of each band, [bands][rows]."""
        keys = []
        for band in range(self.count):
            key = np.zeros(len(signatures), np.uint64)
            for column in range(band * self.rows, (band + 1) * self.rows):
                key = mix((key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + signatures[:, column])
            keys.append(key)
        return keys

    @property
    def least_matches(self) -> int:
        """Values that signatures of near duplicates share, but for bad luck of `SLACK` standard deviations."""
        spread_ = SLACK * math.sqrt(PERMUTATIONS * self.threshold * (1 - self.threshold))
        return max(math.floor(PERMUTATIONS * self.threshold - spread_), 1)


def write_bands(signatures: NDArray[np.uint32], numbers: I64, bands: Bands, path: Path) -> None:
    """Write the bands of the rows of a shard that have words, for DuckDB to read one at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    has_words = ~(signatures == NO_WORDS).all(axis=1)
    columns = {"row": numbers[has_words], **dict(zip(bands.names, bands.keys(signatures[has_words]), strict=True))}
    parquet.write_table(pa.table(columns), path, compression="none", use_dictionary=False, write_statistics=False)


def join_near(
    engine: Any,
    paths: Sequence[Path],
    files: Sequence[ShardFile],
    near: float,
    clusters: Clusters,
    work: Path,
    sketches: Path,
    limits: Limits,
) -> tuple[int, int]:
    """Join the rows whose texts are near duplicates. Returns the verified pairs and the buckets too wide for all pairs.

    `clusters` holds the copies; one row of each set of copies is compared with others.
    """
    bands = Bands.at(near)
    copies = clusters.labels()
    is_first = copies == np.arange(len(copies))
    needed = np.zeros(len(copies), bool)
    (work / "buckets").mkdir()
    wide = 0
    with report_progress("finding candidates", bands.count, "bands") as progress:
        for band, name in enumerate(bands.names):
            rows, bounds = _buckets(engine, work, name, bands.names[(band + 1) % bands.count], is_first)
            np.savez(work / "buckets" / name, rows=rows, bounds=bounds)
            needed[rows] = True
            wide += int((np.diff(bounds) > MOST_COMPARED + 1).sum())
            progress.advance(1)
    texts = _read_texts(np.flatnonzero(needed), paths, files, work, sketches, limits)
    verified = 0
    with (
        report_progress("verifying candidates", bands.count, "bands") as progress,
        open(work / JOINED, "wb") as joined,
    ):
        for band, name in enumerate(bands.names):
            with np.load(work / "buckets" / f"{name}.npz") as found:
                for left, right, count in _similar(band, bands, found["rows"], found["bounds"], clusters, texts):
                    verified += count
                    clusters.join(left, right)
                    joined.write(np.stack([left, right], axis=1).tobytes())
                    texts.release()
            progress.advance(1)
    return verified, wide


def _buckets(engine: Any, work: Path, name: str, tie: str, is_first: NDArray[np.bool_]) -> tuple[I64, I64]:
    """Rows that share a band, by bucket, and [buckets + 1] where each begins. Of copies, the first only."""
    source = f"read_parquet('{work}/bands/*.parquet')"
    found = engine.sql(f"""
        SELECT {name} AS key, row FROM {source}
        SEMI JOIN (SELECT {name} FROM {source} GROUP BY {name} HAVING count(*) > 1) USING ({name})
        ORDER BY key, {tie}, row
    """).to_arrow_table()
    keys, rows = found["key"].to_numpy(), found["row"].to_numpy()
    keys, rows = keys[is_first[rows]], rows[is_first[rows]]
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    sizes = np.diff(np.concatenate([begins, [len(keys)]]))
    is_shared = sizes > 1
    kept = spread(begins[is_shared], sizes[is_shared])
    return rows[kept], np.concatenate([[0], np.cumsum(sizes[is_shared])]).astype(np.int64)


@dataclass(frozen=True)
class Texts:
    """Shingles and signatures of the rows that have candidates, in files.

    Attributes:
        rows: their numbers, increasing.
        bounds: [rows + 1] where the shingles of each begin.
    """

    rows: I64
    bounds: I64
    shingles: NDArray[np.uint64]
    signatures: NDArray[np.uint32]
    maps: tuple[mmap.mmap, ...]

    def release(self) -> None:
        """Give back the memory of the pages that were read."""
        for pages in self.maps:
            pages.madvise(mmap.MADV_DONTNEED)


def _read_texts(
    needed: I64, paths: Sequence[Path], files: Sequence[ShardFile], work: Path, sketches: Path, limits: Limits
) -> Texts:
    """Compute the shingles of the needed rows, which are numbers of rows over all shards."""
    firsts = first_rows(files)
    cuts = np.searchsorted(needed, firsts)
    items = [
        (index, path, file, needed[cuts[index] : cuts[index + 1]] - firsts[index])
        for index, (path, file) in enumerate(zip(paths, files, strict=True))
        if cuts[index + 1] > cuts[index]
    ]
    (work / "shingles").mkdir()
    sizes: dict[int, I64] = {}
    with report_progress("reading candidates", sum(file.bytes for _, _, file, _ in items), "bytes") as progress:
        for index, size in call_each(partial(_write_shingles, work, sketches), items, limits.workers):
            sizes[index] = size
            progress.advance(items[index][2].bytes)
    for name in ("u64", "u32"):
        with open(work / f"shingles.{name}", "wb") as whole:
            for item in items:
                part = work / "shingles" / f"{item[0]:05d}.{name}"
                with open(part, "rb") as file:
                    while block := file.read(1 << 20):
                        whole.write(block)
                part.unlink()
    counts = np.concatenate([np.zeros(0, np.int64), *(sizes[index] for index in range(len(items)))])
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    shingles, pages = _mapped(work / "shingles.u64")
    signatures, more = _mapped(work / "shingles.u32")
    numbers = signatures.view(np.uint32).reshape(len(needed), PERMUTATIONS)
    return Texts(needed, bounds, shingles.view(np.uint64), numbers, (*pages, *more))


def _mapped(path: Path) -> tuple[NDArray[np.uint8], list[mmap.mmap]]:
    """The bytes of a file as an array, and its map; an empty file has none."""
    if not path.stat().st_size:
        return np.zeros(0, np.uint8), []
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(pages, np.uint8), [pages]


def _write_shingles(work: Path, sketches: Path, item: tuple[int, Path, ShardFile, I64]) -> I64:
    """Write the distinct shingles of rows of a shard, sorted, and their signatures. Returns how many each has."""
    index, path, file, rows = item
    signatures = make_sketch(sketches, path, file)
    with open(work / "shingles" / f"{index:05d}.u32", "wb") as out:
        out.write(np.ascontiguousarray(signatures[rows]).tobytes())
    texts = read_shard(path, ["text"])["text"].take(rows)
    sizes = [np.zeros(0, np.int64)]
    with open(work / "shingles" / f"{index:05d}.u64", "wb") as out:
        for batch in text_batches(texts):
            shingles, counts = distinct_shingles(batch)
            out.write(shingles.tobytes())
            sizes.append(counts)
    return np.concatenate(sizes)


def distinct_shingles(texts: Any) -> tuple[U64, I64]:
    """The distinct shingles of texts, sorted in each, and how many each has."""
    runs = word_runs(find_words(texts), SHINGLE_WORDS, whole=True)
    ends = runs.firsts.tolist()
    for begin, end in pairwise(ends):
        runs.hashes[begin:end].sort()
    is_new = np.ones(len(runs.hashes), bool)
    is_new[1:] = runs.hashes[1:] != runs.hashes[:-1]
    is_new[runs.firsts[:-1][runs.firsts[:-1] < len(is_new)]] = True
    counts = np.diff(np.concatenate([[0], np.cumsum(is_new)])[runs.firsts])
    return runs.hashes[is_new], counts


def _similar(
    band: int, bands: Bands, rows: I64, bounds: I64, clusters: Clusters, texts: Texts
) -> Iterator[tuple[I64, I64, int]]:
    """The near duplicates among the candidates of a band, some at a time, and how many pairs were verified for them.

    First each bucket's first row with the others: if the caller joins what is found, most rows of a bucket of near
    duplicates are then in one cluster, and only pairs of different clusters remain. The order changes how many pairs
    are verified, not which rows join.
    """
    for pairs in (_star_pairs, _all_pairs):
        for left, right in pairs(rows, bounds):
            differ = clusters.find(left) != clusters.find(right)
            left, right = left[differ], right[differ]
            at, other = np.searchsorted(texts.rows, left), np.searchsorted(texts.rows, right)
            same = texts.signatures[at] == texts.signatures[other]
            is_likely = same.sum(axis=1) >= bands.least_matches
            # A pair that shares an earlier band was verified there.
            earlier = same[:, : band * bands.rows].reshape(len(same), band, bands.rows)
            is_likely &= ~earlier.all(axis=2).any(axis=1)
            kept = np.flatnonzero(is_likely)
            is_near = np.array([similarity(texts, at[pair], other[pair]) for pair in kept]) >= bands.threshold
            yield left[kept[is_near]], right[kept[is_near]], len(kept)


def similarity(texts: Texts, left: int, right: int) -> float:
    """Jaccard similarity of the shingles of two rows."""
    one = texts.shingles[texts.bounds[left] : texts.bounds[left + 1]]
    two = texts.shingles[texts.bounds[right] : texts.bounds[right + 1]]
    both = np.concatenate([one, two])
    both.sort()
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (len(both) - common)


def _star_pairs(rows: I64, bounds: I64) -> Iterator[tuple[I64, I64]]:
    """The first row of each bucket with each other row."""
    sizes = np.diff(bounds)
    first = np.repeat(rows[bounds[:-1]], sizes - 1)
    others = rows[spread(bounds[:-1] + 1, sizes - 1)]
    for begin in range(0, len(first), PAIRS_AT_A_TIME):
        yield first[begin : begin + PAIRS_AT_A_TIME], others[begin : begin + PAIRS_AT_A_TIME]


def _all_pairs(rows: I64, bounds: I64) -> Iterator[tuple[I64, I64]]:
    """Each row of a bucket with each of the rows after it, `MOST_COMPARED` at most."""
    sizes = np.diff(bounds)
    places = np.arange(len(rows))
    after = np.minimum(np.repeat(bounds[1:], sizes) - places - 1, MOST_COMPARED)
    ends = np.cumsum(after)
    begin = 0
    while begin < len(rows):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + PAIRS_AT_A_TIME, "right")), begin + 1)
        counts = after[begin:end]
        yield np.repeat(rows[begin:end], counts), rows[spread(places[begin:end] + 1, counts)]
        begin = end
