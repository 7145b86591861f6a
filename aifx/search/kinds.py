"""Indexes of faiss: exact ones, and approximate ones whose recall against exact search is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aifx.search.embedders import F32

IndexKind: TypeAlias = Literal["exact", "hnsw", "ivf"]

LINKS, BUILD_EFFORT = 32, 100  # of HNSW: links of a vector, and candidates when it is added
CLUSTER_SAMPLE = 64
"""Vectors per cluster that train an IVF."""

BLOCK_ROWS = 1 << 13
"""Vectors that are compared at a time."""

LEAST_ROWS = 256
"""Fewest rows of a version for an approximate index."""

NEIGHBOURS, QUERIES = 10, 1000
"""The recall is that of so many neighbours of so many queries."""

_ROUNDING = 1e-5  # of a score


@dataclass(frozen=True)
class Recall:
    """The share of exact neighbours that an approximate index finds.

    Attributes:
        share: of the nearest neighbours, from 0 to 1.
        queries: vectors whose neighbours were searched.
        neighbours: of each query.
        least: `--min-recall`.
    """

    share: float
    queries: int
    neighbours: int
    least: float

    @property
    def is_enough(self) -> bool:
        return self.share >= self.least


@dataclass(frozen=True)
class MadeIndex:
    """An index in memory, with its effort and recall.

    Attributes:
        effort: how much of an approximate index a search looks at; None if the index is exact.
        recall: at this effort; None if the index is exact.
    """

    index: Any
    effort: int | None = None
    recall: Recall | None = None


def make_index(
    kind: IndexKind, vectors: F32, ids: NDArray[np.int64], threads: int, least: float, effort: int | None = None
) -> MadeIndex:
    """A faiss index of vectors `[rows, dims]` by inner product, which answers with their ids.

    The recall of an approximate index is measured with vectors that are added afterwards. An index that holds a query
    finds its neighbours by the links that it made when the query was added.

    Args:
        least: recall for which the effort is raised, if that is not given.
    """
    import faiss

    faiss.omp_set_num_threads(threads)
    if kind == "exact":
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(vectors, ids)
        return MadeIndex(index)
    held_out = np.unique(np.linspace(0, len(vectors) - 1, min(QUERIES, len(vectors) // 4)).astype(np.int64))
    queries, others = vectors[held_out], np.delete(vectors, held_out, axis=0)
    index = faiss.IndexIDMap2(_hnsw(vectors.shape[1]) if kind == "hnsw" else _ivf(others))
    index.add_with_ids(others, np.delete(ids, held_out))
    efforts = [effort] if effort is not None else _efforts(index)
    chosen, recall = _measure(index, queries, others, efforts, least)
    index.add_with_ids(queries, ids[held_out])
    return MadeIndex(index, chosen, recall)


def search_index(index: Any, queries: F32, top: int) -> tuple[F32, NDArray[np.int64]]:
    """The scores and ids `[queries, top]` of the nearest vectors, nearest first; an id of -1 is none."""
    import faiss

    base: Any = faiss.downcast_index(index.index)
    if not isinstance(base, faiss.IndexFlat):
        found: tuple[F32, NDArray[np.int64]] = index.search(queries, top)
        return found
    vectors = faiss.rev_swig_ptr(base.get_xb(), base.ntotal * base.d).reshape(base.ntotal, base.d)
    scores, numbers = nearest(queries, vectors, top)
    return scores, faiss.vector_to_array(index.id_map)[numbers]


def nearest(queries: F32, vectors: F32, top: int) -> tuple[F32, NDArray[np.int64]]:
    """The scores and numbers `[queries, top]` of the nearest of at least `top` vectors, nearest first.

    Products in NumPy take a third of the time of the search in faiss's IndexFlat (faiss 1.15, 100,000 x 256). Only
    vectors that are nearer than the `top` nearest before are sorted.
    """
    best = np.full((len(queries), top), -np.inf, np.float32)
    numbers = np.full((len(queries), top), -1, np.int64)
    first_candidates = np.arange(len(queries)) * top
    for at in range(0, len(vectors), BLOCK_ROWS):
        scores = queries @ vectors[at : at + BLOCK_ROWS].T
        width = scores.shape[1]
        nearer = np.flatnonzero(scores > best[:, -1:])
        if len(nearer) > scores.size // 32:  # partitioning takes less time than sorting
            chosen = np.argpartition(scores, max(width - top, 0), axis=1)[:, -top:]
            nearer = (chosen + np.arange(len(queries))[:, None] * width).ravel()
        rows, columns = np.divmod(nearer, width)
        of_query = np.concatenate([np.repeat(np.arange(len(queries)), top), rows])
        candidates = np.concatenate([best.ravel(), scores.ravel()[nearer]])
        candidate_numbers = np.concatenate([numbers.ravel(), columns + at])
        order = np.lexsort((candidate_numbers, -candidates, of_query))
        before = first_candidates + np.searchsorted(np.sort(rows), np.arange(len(queries)))
        kept = order[before[:, None] + np.arange(top)]
        best, numbers = candidates[kept], candidate_numbers[kept]
    return best, numbers


def set_effort(index: Any, effort: int) -> None:
    """Set how much of an approximate index a search looks at: candidates of HNSW, clusters of an IVF."""
    import faiss

    base: Any = faiss.downcast_index(index.index)
    if isinstance(base, faiss.IndexIVF):
        base.nprobe = effort
    else:
        base.hnsw.efSearch = effort


def _hnsw(dims: int) -> Any:
    # A graph with links between near vectors, in layers: a search walks from the few vectors of the top layer to nearer
    # ones, and down (Malkov & Yashunin 2016, arXiv 1603.09320). Its effort is how many candidates it keeps.
    import faiss

    base = faiss.IndexHNSWFlat(dims, LINKS, faiss.METRIC_INNER_PRODUCT)
    base.hnsw.efConstruction = BUILD_EFFORT
    return base


def _ivf(vectors: F32) -> Any:
    # Inverted lists: k-means divides the vectors into clusters, and a search looks into those whose centres are nearest
    # to the query (Jegou et al. 2011, "Product Quantization for Nearest Neighbor Search", section IV). Its effort is
    # their number. 4 sqrt(rows) clusters are the least that faiss's wiki advises ("Guidelines to choose an index").
    import faiss

    rows, dims = vectors.shape
    clusters = max(1, min(round(4 * math.sqrt(rows)), rows // CLUSTER_SAMPLE))
    base = faiss.IndexIVFFlat(faiss.IndexFlatIP(dims), dims, clusters, faiss.METRIC_INNER_PRODUCT)
    base.cp.min_points_per_centroid = 1
    base.train(np.ascontiguousarray(vectors[:: max(1, rows // (CLUSTER_SAMPLE * clusters))]))
    return base


def _efforts(index: Any) -> list[int]:
    """The efforts to try: from 8 by factors of 2 to that above which the index finds no more."""
    import faiss

    base = faiss.downcast_index(index.index)
    most = base.nlist if isinstance(base, faiss.IndexIVF) else base.ntotal
    powers = [8 << step for step in range(int(most).bit_length())]
    return [*(effort for effort in powers if effort < most), int(most)]


def _measure(index: Any, queries: F32, vectors: F32, efforts: list[int], least: float) -> tuple[int, Recall]:
    """The first of the efforts whose recall is enough, otherwise the last, and its recall.

    Of vectors that are equally near, an index may find any.
    """
    neighbours = min(NEIGHBOURS, len(vectors))
    exact, _ = nearest(queries, vectors, neighbours)
    for effort in efforts:
        set_effort(index, effort)
        scores, found = index.search(queries, neighbours)
        is_near = (scores >= exact[:, -1:] - _ROUNDING) & (found >= 0)
        recall = Recall(float(is_near.mean()), len(queries), neighbours, least)
        if recall.is_enough:
            break
    return effort, recall
