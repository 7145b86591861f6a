"""Texts of about the same meaning as duplicates: the cosine of their vectors is large enough.

1. Each text is embedded as `aifx data index` does.
2. Up to `EXACT_ROWS` texts, all pairs are candidates. Of more, those that an inverted index of faiss finds: k-means
   divides the vectors, and pairs of near clusters are compared (Abbas et al. 2023, "SemDeDup", arXiv 2303.09540).
3. The cosine of each candidate pair is computed again from both vectors, the same however they were found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.json_values import plain
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.curation.duplicates import Dedupe, find_duplicates_by
from aifx.curation.near import Clusters
from aifx.curation.step import Limits
from aifx.curation.words import I64
from aifx.curation.work_folders import sketches_of
from aifx.data.versions.manifest import Manifest, Version
from aifx.search.building import embed_shards, join_vectors
from aifx.search.embedders import F32, Embedder
from aifx.search.kinds import make_index, set_effort

SEMANTIC = "semantic"
"""The rule of a text that means the same as another one."""

EXACT_ROWS = 1 << 16
LEAST_RECALL = 0.98
BLOCK = 1 << 11
ROUNDING = 1e-4
"""Largest error of a product in single precision, whose sum another library orders otherwise."""

PAIRS_AT_A_TIME = 1 << 13


@dataclass(frozen=True, kw_only=True)
class SemanticDedupe(Dedupe):
    """Keeps one row of each cluster of texts whose vectors are near each other.

    Attributes:
        cosine: least cosine of the vectors of two of them.
        embedder: only `prepare` uses it, so it does not go to other processes.
    """

    near: None = None
    cosine: float
    embedder: Embedder

    rule = SEMANTIC

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"semantic": self.cosine, "embedder": plain(self.embedder.record), "mark": self.mark}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "embedder": None}

    def find(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        version = self.parents[0]
        join = partial(join_semantic, version, self.cosine, self.embedder, work, limits)
        return find_duplicates_by(SEMANTIC, join, version, work, sketches_of(work), limits)


def check_texts(version: Version) -> None:
    """Raise UsageError for a version without texts."""
    if version.manifest.kind != "text":
        why = f"{version.reference} holds {version.manifest.kind}"
        raise UsageError("--semantic is for text", why, f"aifx data dedupe {version.manifest.name}")


def _check_memory(manifest: Manifest, embedder: Embedder, limits: Limits) -> None:
    """Raise EnvironmentFault if the vectors of the rows exceed the memory."""
    needed = 4 * manifest.rows * embedder.record.dims * (1 if manifest.rows <= EXACT_ROWS else 2)
    if needed > limits.memory_bytes:
        why = f"{counted(manifest.rows, 'vector')} of {embedder.record.dims} numbers need {readable_bytes(needed)}"
        raise EnvironmentFault("the vectors do not fit into --memory", why, f"--memory {needed // 10**9 + 1}GB")


def join_semantic(
    version: Version, cosine: float, embedder: Embedder, work: Path, limits: Limits, clusters: Clusters
) -> dict[str, Any]:
    """Join the texts whose vectors have at least this cosine. Of copies, the first is compared.

    Returns the number of `pairs` that were verified, and the `recall` of the index if there is one. Raises
    EnvironmentFault if the vectors exceed the memory.
    """
    _check_memory(version.manifest, embedder, limits)
    folder = work / "vectors"
    folder.mkdir()
    embed_shards(version, "text", embedder, folder, limits)
    vectors, rows = join_vectors(version, folder, embedder.record.dims)
    labels = clusters.labels()
    is_first = labels[rows] == rows
    vectors, rows = vectors[is_first], rows[is_first]
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)  # about 1: single precision rounds lengths
    verified, facts = 0, dict[str, Any]()
    pairs = _all_pairs(vectors, cosine) if len(rows) <= EXACT_ROWS else _near_pairs(vectors, cosine, limits, facts)
    with report_progress("comparing vectors", len(rows), "texts") as progress:
        for done, left, right in pairs:
            for begin in range(0, len(left), PAIRS_AT_A_TIME):
                one, other = left[begin : begin + PAIRS_AT_A_TIME], right[begin : begin + PAIRS_AT_A_TIME]
                is_open = clusters.find(rows[one]) != clusters.find(rows[other])
                one, other = one[is_open], other[is_open]
                products = np.einsum("ij,ij->i", vectors[one], vectors[other], dtype=np.float64)
                is_near = products >= cosine * np.sqrt(squares[one] * squares[other])
                clusters.join(rows[one[is_near]], rows[other[is_near]])
                verified += len(one)
            progress.advance(done)
    return {"pairs": verified, **facts}


def _all_pairs(vectors: F32, cosine: float) -> Iterator[tuple[int, I64, I64]]:
    """The candidates of all pairs, a block at a time, and the rows that are done with it."""
    for begin in range(0, len(vectors), BLOCK):
        block = vectors[begin : begin + BLOCK]
        for start in range(begin, len(vectors), BLOCK):
            left, right = np.nonzero(block @ vectors[start : start + BLOCK].T >= cosine - ROUNDING)
            is_after = right + start > left + begin
            is_last = start + BLOCK >= len(vectors)
            yield len(block) if is_last else 0, left[is_after] + begin, right[is_after] + start


def _near_pairs(vectors: F32, cosine: float, limits: Limits, facts: dict[str, Any]) -> Iterator[tuple[int, I64, I64]]:
    """The candidates that an index finds. Its recall goes into `facts`."""
    made = make_index("ivf", vectors, np.arange(len(vectors)), limits.workers, LEAST_RECALL)
    assert made.effort is not None
    assert made.recall is not None
    set_effort(made.index, made.effort)
    facts["recall"] = made.recall.share
    for begin in range(0, len(vectors), BLOCK):
        block = np.ascontiguousarray(vectors[begin : begin + BLOCK])
        bounds, _, found = made.index.range_search(block, cosine - ROUNDING)
        left = np.repeat(np.arange(len(block)) + begin, np.diff(bounds.astype(np.int64)))
        yield len(block), left[found > left], found[found > left]
