"""An audit of near duplicates: edited copies of the user's own rows are planted, and the detector must find them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from aifx.core.digests import Hash64
from aifx.core.errors import DataError, ExitCode, UsageError
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.core.results import Result
from aifx.curation.duplicates import find_duplicates
from aifx.curation.near import JOINED, SHINGLE_WORDS
from aifx.curation.step import Limits, read_decisions
from aifx.curation.words import split_words
from aifx.data.names import ROW
from aifx.data.versions.catalog import check_shards
from aifx.data.versions.manifest import ShardFile, Version
from aifx.data.versions.shards import read_parts, write_shard

LEAST_WORDS = 20
"""Words of a row of which a copy is planted, at least: in a shorter one, an edit leaves too little."""

LEAST_SIMILARITY = 0.5
ROWS_PER_SHARD = 5000


@dataclass(frozen=True)
class AuditBucket:
    """Planted pairs whose Jaccard similarity is at least `least` and below `below`; the last bucket includes 1.

    Attributes:
        joined: pairs that the detector put into one cluster.
    """

    least: float
    below: float
    pairs: int
    joined: int

    @property
    def share(self) -> float:
        return self.joined / self.pairs if self.pairs else 1.0


@dataclass(frozen=True)
class Audit(Result):
    """The document of `aifx data dedupe --audit --json`.

    Attributes:
        pairs: planted.
        recall: share of the pairs at or above `near` that the detector joined.
        wrong_merges: pairs that the detector joined directly although they are less similar than `near`, by a
            comparison of their words that shares no code with the detector.
        seed: of the choice of rows and edits.
    """

    reference: str
    near: float
    pairs: int
    recall: float
    min_recall: float
    wrong_merges: int
    buckets: tuple[AuditBucket, ...]
    seed: int

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.is_passed else ExitCode.VERDICT

    @property
    def is_passed(self) -> bool:
        return self.recall >= self.min_recall and self.wrong_merges == 0


def audit(version: Version, near: float, pairs: int, min_recall: float, seed: int, work: Path, limits: Limits) -> Audit:
    """Plant edited copies of `pairs` rows among them, in the folder `work`, and search for duplicates.

    Raises UsageError if the version is not of texts, DataError if no row has enough words.
    """
    if version.manifest.kind != "text":
        why = f"{version.reference} holds {version.manifest.kind}"
        raise UsageError("--audit is for text", why, f"aifx data dedupe {version.manifest.name}")
    check_shards(version)
    texts = _sample(version, pairs, seed)
    if not texts:
        why = f"of {counted(version.manifest.rows, 'row')}, none has {LEAST_WORDS} words"
        raise DataError(f"{version.reference} cannot be audited", why, f"aifx data profile {version.reference}")
    copies = [_edited(text, random.Random(f"{seed} {index}")) for index, text in enumerate(texts)]
    order = list(range(2 * len(texts)))
    random.Random(seed).shuffle(order)
    everything = [*texts, *copies]
    clusters, joined = _detect(version, [everything[place] for place in order], near, work, limits)
    place_of = {number: place for place, number in enumerate(order)}
    found, similar = [], []
    with report_progress("comparing pairs", len(texts), "pairs") as progress:
        for index, (text, copy) in enumerate(zip(texts, copies, strict=True)):
            similar.append(_jaccard(text, copy))
            one, two = place_of[index], place_of[index + len(texts)]
            found.append(clusters.get(one, one) == clusters.get(two, two))
            progress.advance(1)
    wrong = sum(_jaccard(everything[order[one]], everything[order[two]]) < near for one, two in joined)
    above = [is_found for is_found, value in zip(found, similar, strict=True) if value >= near]
    recall = sum(above) / len(above) if above else 1.0
    return Audit(version.reference, near, len(texts), recall, min_recall, wrong, _buckets(similar, found), seed)


def _buckets(similar: Sequence[float], found: Sequence[bool]) -> tuple[AuditBucket, ...]:
    counts: dict[int, list[bool]] = {tenth: [] for tenth in range(round(LEAST_SIMILARITY * 10), 10)}
    for value, is_found in zip(similar, found, strict=True):
        counts.setdefault(min(int(value * 10 + 1e-9), 9), []).append(is_found)
    return tuple(
        AuditBucket(tenth / 10, (tenth + 1) / 10, len(pairs), sum(pairs)) for tenth, pairs in sorted(counts.items())
    )


def _sample(version: Version, count: int, seed: int) -> list[str]:
    """Texts of enough words: `count` rows by a hash of their ids, or all if there are fewer."""
    share = min(1.0, 3 * count / max(version.manifest.rows, 1))
    limit = round(share * (2**64 - 1)).to_bytes(8, "big") if share < 1 else b"\xff" * 8
    chosen: list[tuple[bytes, str]] = []
    with report_progress(f"reading {version.reference}", version.manifest.bytes, "bytes") as progress:
        for path, shard in zip(version.shards, version.manifest.shards, strict=True):
            for rows in read_parts(path, [ROW, "text"]):
                ids = rows[ROW].to_pylist()
                keys = [Hash64(f"{seed} {row}".encode()).digest() for row in ids]
                for place in (place for place, key in enumerate(keys) if key <= limit):
                    text = rows["text"][place].as_py() or ""
                    if len(split_words(text)) >= LEAST_WORDS:
                        chosen.append((keys[place], text))
            progress.advance(shard.bytes)
    return [text for _, text in sorted(chosen)[:count]]


def _edited(text: str, chosen: random.Random) -> str:
    """A copy with words replaced, left out, added and swapped, so that it is about as similar as a random aim."""
    words = text.split()
    aim = chosen.uniform(LEAST_SIMILARITY, 1.0)
    shingles = max(len(split_words(text)) - SHINGLE_WORDS + 1, 1)
    edits = max(round(shingles * (1 - aim) / (1 + aim) / SHINGLE_WORDS), 1)
    for _ in range(edits):
        place = chosen.randrange(len(words))
        kind = chosen.choice(("replace", "replace", "delete", "insert", "swap"))
        if kind == "replace":
            words[place] = chosen.choice(words)
        elif kind == "delete" and len(words) > SHINGLE_WORDS:
            del words[place]
        elif kind == "insert":
            words.insert(place, f"{chosen.randrange(1 << 24):x}")
        else:
            other = min(place + 1, len(words) - 1)
            words[place], words[other] = words[other], words[place]
    return " ".join(words)


def _detect(
    version: Version, texts: Sequence[str], near: float, work: Path, limits: Limits
) -> tuple[dict[int, str], list[tuple[int, int]]]:
    """Clusters by number of the text, of texts that have duplicates, and the pairs that were joined directly."""
    files: list[ShardFile] = []
    for begin in range(0, len(texts), ROWS_PER_SHARD):
        part = texts[begin : begin + ROWS_PER_SHARD]
        ids = [f"planted-{begin + index}" for index in range(len(part))]
        rows = pa.table({ROW: ids, "text": pa.array(part, pa.string())})
        files += write_shard(work, f"{begin:09d}", rows)
    copies = replace(version.manifest, name=f"copies of {version.manifest.name}", shards=tuple(files))
    folder = work / "search"
    (work / "sketches").mkdir()
    find_duplicates(Version(work, copies), near, folder, work / "sketches", limits)
    decisions = read_decisions(folder, 0, len(texts))
    clusters = dict(zip(decisions["row"].to_pylist(), decisions["cluster"].to_pylist(), strict=True))
    joined = np.fromfile(folder / JOINED, np.int64).reshape(-1, 2)
    return clusters, [(int(one), int(two)) for one, two in joined]


@lru_cache(maxsize=4096)
def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = split_words(text)
    return frozenset(tuple(words[at : at + SHINGLE_WORDS]) for at in range(max(len(words) - SHINGLE_WORDS + 1, 1)))


def _jaccard(one: str, two: str) -> float:
    left, right = _shingles(one), _shingles(two)
    return len(left & right) / len(left | right)
