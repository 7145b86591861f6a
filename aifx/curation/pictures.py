"""Pictures that look the same: resized, encoded again, lighter or darker, whatever their files.

1. Each picture becomes 32 x 32 pixels. Its hash is the signs of 64 low frequencies against their median: the pHash of
   Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1.
2. Pairs whose hashes differ in few bits are candidates. Such hashes agree in parts, by which they are sorted.
3. The 32 x 32 pixels of each candidate pair are compared: both pictures are alike but for brightness and contrast.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from aifx.core.calls import call_each
from aifx.core.errors import UsageError
from aifx.core.progress import report_progress
from aifx.curation.duplicates import Dedupe, find_duplicates_by
from aifx.curation.near import Clusters
from aifx.curation.step import Limits, first_rows, numbered_parts
from aifx.curation.words import I64, U64, group_starts, spread
from aifx.curation.work_folders import sketches_of
from aifx.data.readers.pictures import BadPicture, Geometry, decode
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import return_memory

PICTURE = "similar picture"
"""The rule of a picture that resembles another one."""

DISTANCE, MOST_DISTANCE = 8, 16
"""Bits in which the hashes of candidates differ: by default, and at most. Hashes of unlike pictures differ in 32."""

CORRELATION = 0.98
"""Least correlation of the pixels of two pictures that look the same. Of 300 parts of three photographs, JPEG of
quality 20 leaves 0.987 at least, and no two of them have more than 0.964. Of the 8 million pairs of 4,000 pictures of
Fashion-MNIST, 18 are candidates that have more."""

SIDE = 32
PIXELS = SIDE * SIDE * 3
GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601
LEAST_SPREAD = 2.0
"""Standard deviation of the grey values of a picture, of 255, below which there is nothing to compare."""

SMALL = "pictures.u8"
PAIRS_AT_A_TIME, VERIFIED_AT_A_TIME = 1 << 18, 1 << 9


@dataclass(frozen=True, kw_only=True)
class PictureDedupe(Dedupe):
    """Keeps one row of each cluster of pictures that look the same.

    Attributes:
        distance: most bits in which the hashes of two of them differ.
    """

    near: None = None
    distance: int = DISTANCE

    rule = PICTURE

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"images": self.distance, "mark": self.mark}

    def find(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        version = self.parents[0]
        join = partial(join_similar, version, self.distance, work, limits)
        return find_duplicates_by(PICTURE, join, version, work, sketches_of(work), limits)


def check_pictures(version: Version) -> None:
    """Raise UsageError for a version that holds no pictures."""
    if version.manifest.kind != "images":
        why = f"{version.reference} holds {version.manifest.kind}"
        raise UsageError("--images is for pictures", why, f"aifx data dedupe {version.manifest.name}")


def join_similar(version: Version, distance: int, work: Path, limits: Limits, clusters: Clusters) -> dict[str, int]:
    """Join the pictures that look the same. Of copies, the first is compared.

    Returns the number of `pairs` that were verified, and of pictures that cannot be compared, which are damaged or have
    one colour: `incomparable`.
    """
    hashes = _read(version, work, limits)
    labels = clusters.labels()
    rows = np.flatnonzero((hashes != 0) & (labels == np.arange(len(labels))))
    verified = 0
    small = np.memmap(work / SMALL, np.uint8, "r", shape=(len(hashes), PIXELS)) if len(rows) else None
    for left, right in candidates(hashes[rows], distance):
        left, right = rows[left], rows[right]
        for begin in range(0, len(left), VERIFIED_AT_A_TIME):
            one, other = left[begin : begin + VERIFIED_AT_A_TIME], right[begin : begin + VERIFIED_AT_A_TIME]
            is_open = clusters.find(one) != clusters.find(other)
            one, other = one[is_open], other[is_open]
            if len(one):
                assert small is not None
                alike = look_alike(small[one], small[other])
                clusters.join(one[alike], other[alike])
                verified += len(one)
    return {"pairs": verified, "incomparable": int((hashes == 0).sum())}


def _read(version: Version, work: Path, limits: Limits) -> U64:
    """The hash of each row's picture, 0 for one without. Its pixels go to a file in `work`."""
    files = version.manifest.shards
    items = list(zip(first_rows(files).tolist(), version.shards, strict=False))
    (work / SMALL).touch()
    found = [np.zeros(0, np.uint64)] * len(files)
    with report_progress(f"looking at {version.reference}", sum(file.bytes for file in files), "bytes") as progress:
        for index, hashes in call_each(partial(_read_shard, work), items, limits.workers, begin=return_memory):
            found[index] = hashes
            progress.advance(files[index].bytes)
    return np.concatenate([np.zeros(0, np.uint64), *found])


def _read_shard(work: Path, item: tuple[int, Path]) -> U64:
    first, path = item
    hashes = [np.zeros(0, np.uint64)]
    with open(work / SMALL, "r+b") as file:
        file.seek(first * PIXELS)
        for _, rows in numbered_parts(path, ["image"]):
            pixels, is_seen = shrunk(rows["image"].to_pylist())
            file.write(pixels.data)
            hashes.append(np.where(is_seen, hash_of(pixels), np.uint64(0)))
    return np.concatenate(hashes)


def shrunk(pictures: list[bytes | None]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The pixels `[pictures, PIXELS]` of the bytes of files, and which of them can be compared."""
    pixels = np.zeros((len(pictures), PIXELS), np.uint8)
    for index, data in enumerate(pictures):
        try:
            pixels[index] = decode(io.BytesIO(data or b""), Geometry(SIDE, SIDE, 3, "stretch")).ravel()
        except BadPicture:
            continue
    return pixels, _grey(pixels).std(axis=(1, 2)) >= LEAST_SPREAD


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = pixels.reshape(-1, SIDE, SIDE, 3) @ GREY
    return found


def hash_of(pixels: NDArray[np.uint8]) -> U64:
    """The perceptual hash of pictures, 64 bits each."""
    # The lowest frequencies of both directions are the mean, which brightness changes, and rows and columns of stripes.
    low = dctn(_grey(pixels), axes=(1, 2), norm="ortho")[:, 1:9, 1:9].reshape(-1, 64)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return bits.view("<u8").ravel().astype(np.uint64)


def look_alike(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether the pixels of two pictures each, `[pairs, PIXELS]`, correlate. The sums are whole numbers, so exact."""
    one, other = left.astype(np.float64), right.astype(np.float64)

    def covariance(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = PIXELS * np.einsum("ij,ij->i", x, y) - x.sum(axis=1) * y.sum(axis=1)
        return found

    return covariance(one, other) >= CORRELATION * np.sqrt(covariance(one, one) * covariance(other, other))


def candidates(hashes: U64, distance: int) -> Iterator[tuple[I64, I64]]:
    """The pairs of hashes that differ in at most `distance` bits, by their places, some at a time.

    Cut into `distance + 2` parts, such hashes agree in two parts at least: that is what is left by as many differences
    as there are. So all hashes are sorted by each two parts (Manku et al. 2007, "Detecting Near-Duplicates for Web
    Crawling", section 3).
    """
    ends = np.linspace(0, 64, distance + 3).round().astype(int).tolist()
    masks = [sum(1 << bit for bit in range(begin, end)) for begin, end in pairwise(ends)]
    parts = np.array(masks, np.uint64)  # increasing
    with report_progress("comparing pictures", len(masks) * (len(masks) - 1) // 2, "parts") as progress:
        for one, other in combinations(masks, 2):
            keys = hashes & np.uint64(one | other)
            order = np.argsort(keys, kind="stable")
            for left, right in _pairs_in_groups(group_starts(keys[order])):
                differences = hashes[order[left]] ^ hashes[order[right]]
                near = np.flatnonzero(np.bitwise_count(differences) <= distance)
                agrees = (differences[near, None] & parts[parts < np.uint64(other)]) == 0
                near = near[
                    agrees.sum(axis=1) == 1
                ]  # otherwise two earlier parts agree, and the pair was found by them
                yield order[left[near]], order[right[near]]
            progress.advance(1)


def _pairs_in_groups(is_start: NDArray[np.bool_]) -> Iterator[tuple[I64, I64]]:
    """All pairs of places that are in one group, some at a time. `is_start` marks the first place of each group."""
    starts = np.append(np.flatnonzero(is_start), len(is_start))
    sizes = np.diff(starts)
    places = np.arange(len(is_start))
    after = np.repeat(starts[1:], sizes) - places - 1  # places of the same group that follow each
    ends = np.cumsum(after)
    begin = 0
    while begin < len(places):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + PAIRS_AT_A_TIME, "right")), begin + 1)
        counts = after[begin:end]
        yield np.repeat(places[begin:end], counts), spread(places[begin:end] + 1, counts)
        begin = end
