"""Near duplicates: candidates that share a band of their sketches, each verified by the shingles of both texts.

A sketch is a MinHash signature of a text's runs of words. Sketches are kept, so that a text is sketched once, as are
the digests that find copies: `<data set>/sketches/` has a file for each shard, by the shard's SHA-256, and
`algorithm.json`. Signatures of two versions of the algorithm have nothing in common, so aifx refuses to compare them.

Rows that share a key, such as a band or the digest of a copy, are found by sorting within a limit of memory.
"""

from __future__ import annotations

import math
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from aifx.core.calls import call_each
from aifx.core.errors import DataError
from aifx.core.files import make_folders, read_file, replacing
from aifx.core.json_files import write_json
from aifx.core.parsing import parse_json
from aifx.core.progress import report_progress
from aifx.curation.step import Limits, by_shard, first_rows, numbered_parts
from aifx.curation.words import HASHES, I64, U64, find_words, group_starts, mix, spread, text_pieces, word_runs
from aifx.data.readers.arrow import pa
from aifx.data.versions.manifest import ShardFile, Version
from aifx.data.versions.shards import return_memory

SHINGLE_WORDS = 5
PERMUTATIONS = 96
SEED = 1
NO_WORDS = 0xFFFFFFFF  # each value of the signature of a text without words
ROWS_AT_A_TIME = 4096
"""Whose signatures are lists of Python's integers at a time: of 4 kB each."""


class SketchesOutdated(DataError):
    """Sketches of another version of the algorithm."""


def algorithm() -> Mapping[str, Any]:
    """The settings that signatures depend on in addition to the text."""
    return {
        "method": "R-MinHash",
        "version": int(_rensa().ALGORITHM_VERSION),
        "permutations": PERMUTATIONS,
        "seed": SEED,
        "shingle_words": SHINGLE_WORDS,
        "word_hashes": HASHES,
    }


def open_sketches(folder: Path, rebuild_command: str) -> None:
    """Make the folder of sketches. Raises SketchesOutdated if it holds those of another version of the algorithm."""
    path, ours = folder / "algorithm.json", algorithm()
    if not path.exists():
        make_folders(folder, below=folder.parent)
        write_json(path, ours)
    found: Any = None
    with suppress(ValueError):
        found = parse_json(read_file(path))
    if found != ours:
        theirs = found if isinstance(found, dict) else {}
        differ = [name for name in ours if theirs.get(name) != ours[name]]
        why = "; ".join(f"{name} is {theirs.get(name)}, and this aifx has {ours[name]}" for name in differ)
        raise SketchesOutdated(f"the sketches in {folder} are of another algorithm", why, rebuild_command)


@dataclass(frozen=True)
class KeptValues:
    """Values of the rows of a shard, [rows, width], which are computed once and kept in a file of NumPy's format.

    Attributes:
        type: of a value, as NumPy names it.
    """

    path: Path
    rows: int
    width: int
    type: str

    @property
    def begin(self) -> int | None:
        """The place of the first value in the file; None if the file is missing or damaged."""
        try:
            found = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        is_whole = found.shape == (self.rows, self.width) and found.dtype == np.dtype(self.type)
        return int(found.offset) if is_whole and isinstance(found, np.memmap) else None

    @contextmanager
    def reading(self, compute: Callable[[Any], NDArray[Any]]) -> Iterator[Callable[[Any], NDArray[Any]]]:
        """A function for the rows, some at a time and all of them in order: it returns their values.

        It reads them from the file, for which it only needs to know how many rows there are. If the file is missing, it
        computes them, and the file is there when the block ends.
        """
        if (begin := self.begin) is not None:
            size = self.width * np.dtype(self.type).itemsize
            with open(self.path, "rb") as found:
                found.seek(begin)
                yield lambda rows: self._array(found.read(size * len(rows)))
            return
        with replacing(self.path) as file:
            header = {"descr": self.type, "fortran_order": False, "shape": (self.rows, self.width)}
            np.lib.format.write_array_header_1_0(file, header)

            def make(rows: Any) -> NDArray[Any]:
                values = compute(rows)
                file.write(values.data)
                return values

            yield make

    def _array(self, data: bytes) -> NDArray[Any]:
        return np.frombuffer(data, self.type).reshape(-1, self.width)


def sketch_of(folder: Path, shard: ShardFile) -> KeptValues:
    """The signatures of the rows of a shard, which `sketch_rows` computes."""
    return KeptValues(folder / f"{shard.sha256}.npy", shard.rows, PERMUTATIONS, "<u4")


def sketch_rows(rows: Any) -> NDArray[np.uint32]:
    """Signatures of the texts of rows, [rows, permutations]."""
    return sketch_texts(rows["text"])


def sketch_texts(texts: Any) -> NDArray[np.uint32]:
    """Signatures of texts, [texts, permutations]."""
    parts = []
    for piece in text_pieces(texts, ROWS_AT_A_TIME):
        runs = word_runs(find_words(piece), SHINGLE_WORDS, whole=True)
        firsts = runs.firsts.astype(np.uint64)
        matrix = _rensa().digest_matrix_from_flat_token_hashes(runs.hashes, firsts, PERMUTATIONS, SEED)
        # Arrays convert lists of integers twice as fast as NumPy does.
        parts += [array("I", row).tobytes() for row in matrix.to_rows()]
    return _signatures(b"".join(parts))


def _signatures(data: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(data, np.uint32).reshape(-1, PERMUTATIONS)


def hash_bytes(values: Sequence[bytes]) -> list[int]:
    """64-bit hashes of values, which another version of rensa may hash differently."""
    hashes: list[int] = _rensa().hash_token_sets([values])[0]
    return hashes


def _rensa() -> Any:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # processes sketch shards, each with one thread
    import rensa

    return rensa.RMinHash


RECALL = 0.999
"""Least probability that two texts share a band if they are as similar as the threshold."""

SLACK = 4.0
"""Standard deviations by which the estimate of a pair may be below the threshold before the pair is left out."""

MOST_COMPARED = 1024
"""Rows of a bucket with which each of its rows is compared. In a wider one they are those that are next by sketch."""

PAIRS_AT_A_TIME = 1 << 12
SORT_BYTES = 64
"""Memory for each key that is sorted."""

JOINED = "joined.i64"
"""The pairs of rows that were found to be near duplicates: two numbers each."""


# How near duplicates are found. The shingles of a text are its runs of 5 words; two texts are as similar as the share
# of their shingles that both have (Jaccard). A permutation of all shingles gives each text its smallest one, and two
# texts get the same with just this probability (MinHash: A. Broder, "On the resemblance and containment of documents",
# 1997). A signature has the minima of 96 permutations. It is cut into bands of some values, and two texts are
# candidates if a whole band is equal (banding: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section
# 3.4): with probability 1 - (1 - s^rows)^bands at similarity s, which rises steeply near the threshold. Both steps are
# chance, so each candidate is verified: its similarity is computed from the shingles of both texts. A pair is left out
# without that only if its signatures agree in `SLACK` standard deviations fewer values than those of near duplicates.


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
        every = (Bands(rows, PERMUTATIONS // rows, threshold) for rows in range(PERMUTATIONS, 0, -1))
        return next(bands for bands in every if bands.rows == 1 or bands.recall(threshold) >= RECALL)

    def recall(self, similarity: float) -> float:
        """Probability that two texts of this similarity share a band."""
        return 1 - (1 - similarity**self.rows) ** self.count

    def keys(self, signatures: NDArray[np.uint32]) -> list[U64]:
        """Hashes of each band, [bands][rows]: 0 for texts without words."""
        keys = np.zeros((self.count, len(signatures)), np.uint64)
        for row in range(self.rows):  # in place, since they are a few megabytes
            keys += np.uint64(1)
            keys *= np.uint64(0x9E3779B97F4A7C15)
            keys += signatures[:, row : self.count * self.rows : self.rows].T
            mix(keys)
        keys *= (signatures != NO_WORDS).any(axis=1)
        return list(keys)

    @property
    def least_matches(self) -> int:
        """Values that signatures of near duplicates share, but for bad luck of `SLACK` standard deviations."""
        spread_ = SLACK * math.sqrt(PERMUTATIONS * self.threshold * (1 - self.threshold))
        return max(math.floor(PERMUTATIONS * self.threshold - spread_), 1)


def join_near(
    version: Version, keys: Keys, near: float, clusters: Clusters, work: Path, sketches: Path, limits: Limits
) -> tuple[int, int]:
    """Join the rows whose texts are near duplicates. Returns the verified pairs and the buckets too wide for all pairs.

    `clusters` holds the copies; one row of each set of copies is compared with others.

    Args:
        keys: the bands of all rows.
    """
    bands = Bands.at(near)
    copies = clusters.labels()
    is_first = copies == np.arange(len(copies))
    needed = np.zeros(len(copies), bool)
    (work / "buckets").mkdir()
    wide = 0
    with report_progress("finding candidates", bands.count, "bands") as progress:
        for band in range(bands.count):
            rows, bounds = _buckets(keys, band, (band + 1) % bands.count, is_first, limits)
            np.savez(work / "buckets" / f"{band}.npz", rows=rows, bounds=bounds)
            needed[rows] = True
            wide += int((np.diff(bounds) > MOST_COMPARED + 1).sum())
            progress.advance(1)
    verified = 0
    with (
        _read_texts(version, np.flatnonzero(needed), work, sketches, limits) as texts,
        report_progress("verifying candidates", bands.count, "bands") as progress,
        open(work / JOINED, "wb") as joined,
    ):
        for band in range(bands.count):
            with np.load(work / "buckets" / f"{band}.npz") as found:
                for left, right, count in _similar(band, bands, found["rows"], found["bounds"], clusters, texts):
                    verified += count
                    clusters.join(left, right)
                    joined.write(np.stack([left, right], axis=1).tobytes())
            progress.advance(1)
    return verified, wide


def _buckets(keys: Keys, band: int, tie: int, is_first: NDArray[np.bool_], limits: Limits) -> tuple[I64, I64]:
    """Rows that share a band, by bucket, and [buckets + 1] where each begins. Of copies, the first only."""
    rows, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for found, numbers, _ in keys.shared(band, tie, limits.spare_bytes):
        found, numbers = found[is_first[numbers]], numbers[is_first[numbers]]
        begins = np.flatnonzero(group_starts(found))
        counts = np.diff(np.append(begins, len(found)))
        is_shared = counts > 1
        rows.append(numbers[spread(begins[is_shared], counts[is_shared])])
        sizes.append(counts[is_shared])
    return np.concatenate(rows), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)


@dataclass(frozen=True)
class Texts:
    """Shingles and signatures of the rows that have candidates, in files.

    Attributes:
        rows: their numbers, increasing.
        bounds: [rows + 1] where the shingles of each begin.
        shingles: descriptor of the file with the shingles.
        signatures: descriptor of the file with the signatures.
    """

    rows: I64
    bounds: I64
    shingles: int
    signatures: int

    def shingles_of(self, index: int) -> U64:
        """The distinct shingles of a row, sorted."""
        begin, end = int(self.bounds[index]), int(self.bounds[index + 1])
        return np.frombuffer(os.pread(self.shingles, 8 * (end - begin), 8 * begin), np.uint64)

    def signatures_of(self, indices: I64) -> NDArray[np.uint32]:
        """The signatures of rows, [rows, permutations]."""
        size = 4 * PERMUTATIONS
        distinct, places = np.unique(indices, return_inverse=True)
        data = b"".join([os.pread(self.signatures, size, size * index) for index in distinct.tolist()])
        return _signatures(data)[places]


@contextmanager
def _read_texts(version: Version, needed: I64, work: Path, sketches: Path, limits: Limits) -> Iterator[Texts]:
    """Compute the shingles of the needed rows, which are numbers of rows over all shards."""
    files = version.manifest.shards
    items = [(index, version.shards[index], files[index], own) for index, own in by_shard(needed, files)]
    (work / "shingles").mkdir()
    write, sizes = partial(_write_shingles, work, sketches), dict[int, I64]()
    with report_progress("reading candidates", sum(file.bytes for _, _, file, _ in items), "bytes") as progress:
        for index, size in call_each(write, items, limits.workers, begin=return_memory):
            sizes[index] = size
            progress.advance(items[index][2].bytes)
    for name in ("u64", "u32"):
        with open(work / f"shingles.{name}", "wb") as whole:
            for item in items:
                part = work / "shingles" / f"{item[0]:05d}.{name}"
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
                part.unlink()
    counts = np.concatenate([np.zeros(0, np.int64), *(sizes[index] for index in range(len(items)))])
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    with open(work / "shingles.u64", "rb") as shingles, open(work / "shingles.u32", "rb") as signatures:
        yield Texts(needed, bounds, shingles.fileno(), signatures.fileno())


def _write_shingles(work: Path, sketches: Path, item: tuple[int, Path, ShardFile, I64]) -> I64:
    """Write the distinct shingles of rows of a shard, sorted, and their signatures. Returns how many each has."""
    index, path, shard, needed = item
    sizes = [np.zeros(0, np.int64)]
    with (
        open(work / "shingles" / f"{index:05d}.u32", "wb") as signatures,
        open(work / "shingles" / f"{index:05d}.u64", "wb") as shingles,
        sketch_of(sketches, shard).reading(sketch_rows) as sketch,
    ):
        for first, rows in numbered_parts(path, ["text"]):
            begin, end = np.searchsorted(needed, (first, first + len(rows)))
            own = needed[begin:end] - first
            signatures.write(np.ascontiguousarray(sketch(rows)[own]).data)
            found, counts = distinct_shingles(rows["text"].take(pa.array(own)))
            shingles.write(found.data)
            sizes.append(counts)
    return np.concatenate(sizes)


def distinct_shingles(texts: Any) -> tuple[U64, I64]:
    """The distinct shingles of texts, sorted in each, and how many each has."""
    runs = word_runs(find_words(texts), SHINGLE_WORDS, whole=True)
    for begin, end in pairwise(runs.firsts.tolist()):
        runs.hashes[begin:end].sort()
    is_new = group_starts(runs.hashes)
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
            same = texts.signatures_of(at) == texts.signatures_of(other)
            is_likely = same.sum(axis=1) >= bands.least_matches
            # A pair that shares an earlier band was verified there.
            earlier = same[:, : band * bands.rows].reshape(len(same), band, bands.rows)
            is_likely &= ~earlier.all(axis=2).any(axis=1)
            kept = np.flatnonzero(is_likely)
            is_near = np.array([similarity(texts, at[pair], other[pair]) for pair in kept]) >= bands.threshold
            yield left[kept[is_near]], right[kept[is_near]], len(kept)


def similarity(texts: Texts, left: int, right: int) -> float:
    """Jaccard similarity of the shingles of two rows."""
    both = np.concatenate([texts.shingles_of(left), texts.shingles_of(right)])
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


class Clusters:
    """Disjoint sets of the rows 0 to `rows` - 1. Each is named by the smallest number in it."""

    def __init__(self, rows: int) -> None:
        self._parents = np.arange(rows, dtype=np.int64)

    def find(self, rows: I64) -> I64:
        """The name of each row's set."""
        names = self._parents[rows]
        while True:
            above = self._parents[names]
            if np.array_equal(above, names):
                self._parents[rows] = names
                return names
            names = above

    def join(self, left: Any, right: Any) -> None:
        """Join the sets of each pair of rows."""
        while len(left):
            left, right = self.find(left), self.find(right)
            differ = left != right
            left, right = left[differ], right[differ]
            # Roots get smaller parents only, so there is no circle; of several parents for a root, the smallest stays.
            np.minimum.at(self._parents, np.maximum(left, right), np.minimum(left, right))

    def labels(self) -> I64:
        """The name of the set of every row."""
        return self.find(np.arange(len(self._parents)))


def key_file(folder: Path, shard: int) -> Path:
    """The file with the keys of the rows of a shard."""
    return folder / f"{shard:05d}.u64"


def write_keys(file: IO[bytes], rows: int, first: int, columns: Sequence[U64]) -> None:
    """Write the keys of some rows of a shard of `rows` rows, from its row `first` on.

    They are 64-bit numbers, one column after the other, so that each is read without the others. 0 is no key.
    """
    for index, keys in enumerate(columns):
        file.seek(8 * (index * rows + first))
        file.write(np.ascontiguousarray(keys).data)


@dataclass(frozen=True)
class Keys:
    """The keys of all rows of some shards, in a file for each of these."""

    folder: Path
    shards: Sequence[ShardFile]

    def shared(self, column: int, tie: int, memory_bytes: int) -> Iterator[tuple[U64, I64, U64]]:
        """Keys in a column that other rows have too, their rows, and the rows' keys in the column `tie`.

        They are ordered by key, tie and row, and come in parts: all rows of a key are in one. The parts depend on the
        memory, and their order does not.
        """
        bits = (sum(shard.rows for shard in self.shards) * SORT_BYTES // max(memory_bytes, 1)).bit_length()
        for part in range(1 << bits):
            keys, rows = self._part(column, part, bits)
            order = np.argsort(keys)
            keys = keys[order]
            is_start = np.append(group_starts(keys), True)
            is_shared = ~(is_start[1:] & is_start[:-1])
            keys, rows = keys[is_shared], rows[order[is_shared]]
            ties = self._of(tie, rows)
            order = np.lexsort((rows, ties, keys))
            yield keys[order], rows[order], ties[order]

    def _part(self, column: int, part: int, bits: int) -> tuple[U64, I64]:
        """The keys of a column whose highest bits are the number `part`, and their rows."""
        keys, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for index, first in enumerate(first_rows(self.shards)[:-1]):
            found = self._column(index, column)
            is_own = found != 0
            if bits:
                is_own &= (found >> np.uint64(64 - bits)) == part
            keys.append(found[is_own])
            rows.append(np.flatnonzero(is_own) + first)
        return np.concatenate(keys), np.concatenate(rows)

    def _of(self, column: int, rows: I64) -> U64:
        """The keys of some rows in a column."""
        order = np.argsort(rows)
        found = np.empty(len(rows), np.uint64)
        begin = 0
        for index, own in by_shard(rows[order], self.shards):
            found[order[begin : begin + len(own)]] = self._column(index, column)[own]
            begin += len(own)
        return found

    def _column(self, index: int, column: int) -> U64:
        count = self.shards[index].rows
        return np.fromfile(key_file(self.folder, index), np.uint64, count, offset=8 * column * count)
