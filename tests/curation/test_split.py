"""Splits: near duplicates are in one split, and rows stay where they are if others are added."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import LIMITS, clusters_of, edited, numbered, rows_of, some_texts, texts_version

from aifx.core.errors import DataError
from aifx.curation import duplicates
from aifx.curation.duplicates import Dedupe, Split
from aifx.curation.execution import execute
from aifx.data.names import CLUSTER, ROW, SPLIT
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Version


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def texts_with_neighbours(count: int, seed: int) -> list[str]:
    texts = some_texts(count, seed, vocabulary=300, longest=60)
    return [*texts, *(edited(text, 1 + number % 2, number) for number, text in enumerate(texts))]


def split_of(version: Version) -> dict[str, str]:
    return {row[ROW]: row[SPLIT] for row in rows_of(version.shards)}


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.integers(0, 9), st.integers(20, 200), st.sampled_from([0.5, 0.7, 0.8]))
def test_no_row_has_a_near_duplicate_in_another_split(seed: int, hash_seed: int, per_shard: int, near: float) -> None:
    texts = numbered(texts_with_neighbours(60, seed))
    with tempfile.TemporaryDirectory() as folder:
        catalog = open_catalog(folder)
        version = texts_version(catalog, texts, per_shard)
        made = execute(Split((version,), 0.2, 0.3, near, hash_seed), "texts", catalog, LIMITS).version
        splits = split_of(made)
        for row, cluster in clusters_of(texts, near).items():
            assert splits[row] == splits[cluster]
        assert made.manifest.facts["train"] + made.manifest.facts["validation"] + made.manifest.facts["test"] == 120


def test_shares_and_columns(catalog: Catalog) -> None:
    version = texts_version(catalog, numbered(some_texts(2000, 1)), 700)
    made = execute(Split((version,), 0.1, 0.2, 0.8), "texts", catalog, LIMITS).version
    counts = Counter(split_of(made).values())
    assert counts == {name: made.manifest.facts[name] for name in ("train", "validation", "test")}
    assert abs(counts["validation"] - 200) < 45  # 3.3 standard deviations
    assert abs(counts["test"] - 400) < 60
    assert list(made.manifest.columns)[-2:] == [CLUSTER, SPLIT]
    again = execute(Split((made,), 0.1, 0.2, 0.8, seed=1), "texts", catalog, LIMITS).version
    assert list(again.manifest.columns) == list(made.manifest.columns)
    assert split_of(again) != split_of(made)


def test_rows_keep_their_split_when_others_are_added(catalog: Catalog) -> None:
    texts = numbered(some_texts(300, 2))
    few = execute(Split((texts_version(catalog, texts[:200], 90),), 0.2, 0.2, 0.8), "texts", catalog, LIMITS)
    all_ = execute(Split((texts_version(catalog, texts, 90),), 0.2, 0.2, 0.8), "texts", catalog, LIMITS)
    more = split_of(all_.version)
    assert all(more[row] == split for row, split in split_of(few.version).items())


def test_clusters_of_a_lower_threshold_are_used(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    version = texts_version(catalog, numbered(texts_with_neighbours(40, 3)), 50)
    marked = execute(Dedupe((version,), 0.6, mark=True), "texts", catalog, LIMITS).version
    expected = clusters_of(numbered(texts_with_neighbours(40, 3)), 0.6)
    searched: list[float | None] = []
    real = duplicates.find_clusters
    monkeypatch.setattr(
        duplicates, "find_clusters", lambda version, near, *rest: searched.append(near) or real(version, near, *rest)
    )
    for near, is_searched in ((0.8, False), (0.6, False), (None, False), (0.5, True)):
        searched.clear()
        made = execute(Split((marked,), 0.2, 0.2, near), "texts", catalog, LIMITS).version
        assert searched == [near] * is_searched
        if not is_searched:
            assert {row[ROW]: row[CLUSTER] for row in rows_of(made.shards)} == expected
    copies = execute(Dedupe((version,), None, mark=True), "texts", catalog, LIMITS).version
    execute(Split((copies,), 0.2, 0.2, 0.8), "texts", catalog, LIMITS)
    assert searched == [0.5, None, 0.8]  # None: of `dedupe` itself


def test_a_split_without_rows(catalog: Catalog) -> None:
    version = texts_version(catalog, numbered(["one two three", "four five six"]), 10)
    with pytest.raises(DataError, match="is for test, validation") as refused:
        execute(Split((version,), 0.0001, 0.0001, 0.8), "texts", catalog, LIMITS)
    assert refused.value.hint.startswith("aifx data split texts --seed 1")
    assert catalog.find("texts")[1] == version.manifest.version
