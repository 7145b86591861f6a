"""Indexes of faiss against exact search in NumPy, and the recall that aifx reports against the true one."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from aifx.search import kinds
from aifx.search.embedders import F32, normalized
from aifx.search.kinds import IndexKind, make_index, search_index, set_effort


@pytest.fixture(scope="module")
def vectors() -> F32:
    """Random directions: the hardest case of approximate indexes."""
    return normalized(np.random.default_rng(0).standard_normal((3000, 64)))


@pytest.fixture(scope="module")
def unseen() -> F32:
    return normalized(np.random.default_rng(1).standard_normal((200, 64)))


def recall_of(index: object, vectors: F32, queries: F32) -> float:
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    _, found = index.search(queries, 10)  # type: ignore[attr-defined]
    return float(np.mean([len(np.intersect1d(ours, 7 * true)) / 10 for ours, true in zip(found, exact, strict=True)]))


def test_exact_index_is_exact_search(vectors: F32, unseen: F32) -> None:
    made = make_index("exact", vectors, 7 * np.arange(3000), 1, 0.95)
    assert (made.effort, made.recall) == (None, None)
    wanted = unseen @ vectors.T
    for scores, found in (search_index(made.index, unseen, 10), made.index.search(unseen, 10)):
        np.testing.assert_array_equal(found, 7 * np.argsort(-wanted, axis=1)[:, :10])
        np.testing.assert_allclose(scores, -np.sort(-wanted, axis=1)[:, :10], atol=1e-6)


@pytest.mark.parametrize("top", [1, 7, 64, 300])
def test_nearest_in_blocks(vectors: F32, unseen: F32, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal vectors come in the order of their numbers."""
    monkeypatch.setattr(kinds, "BLOCK_ROWS", 64)
    twice = np.concatenate([vectors[:150], vectors[:150]])
    scores, numbers = kinds.nearest(unseen, twice, top)
    wanted = unseen @ twice.T
    np.testing.assert_allclose(scores, -np.sort(-wanted, axis=1)[:, :top], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(wanted, numbers, 1), scores, atol=1e-6)
    assert all(len(set(row)) == top for row in numbers.tolist())


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_reported_recall_is_that_of_unseen_queries(kind: IndexKind, vectors: F32, unseen: F32) -> None:
    low = make_index(kind, vectors, 7 * np.arange(3000), 1, 0.95, effort=4)
    assert low.recall is not None
    assert not low.recall.is_enough
    assert low.recall.share < 0.6
    assert low.recall.share == pytest.approx(recall_of(low.index, vectors, unseen), abs=0.06)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_effort_rises_until_recall_is_enough(kind: IndexKind, vectors: F32, unseen: F32) -> None:
    made = make_index(kind, vectors, 7 * np.arange(3000), 1, 0.9)
    assert made.effort is not None
    assert made.recall is not None
    assert made.recall.is_enough
    assert recall_of(made.index, vectors, unseen) > 0.85
    set_effort(made.index, made.effort // 2)
    assert recall_of(made.index, vectors, unseen) < 0.9


def test_no_index_is_better_than_exact_search(vectors: F32) -> None:
    made = make_index("ivf", vectors[:300], np.arange(300), 1, 1.0)
    assert made.recall is not None
    assert made.recall.share == 1.0
    assert made.effort == faiss.downcast_index(made.index.index).nlist
