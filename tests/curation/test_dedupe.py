"""Duplicates: the clusters are those of comparing all pairs, whatever the order of rows and the size of shards."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import (
    LIMITS,
    Made,
    clusters_of,
    edited,
    jaccard,
    numbered,
    order_of,
    rows_of,
    shingles_of,
    some_texts,
    texts_version,
)

from aifx.core.errors import UsageError
from aifx.core.files import UnsafeFile
from aifx.curation import near as near_module
from aifx.curation import near as sketches_module
from aifx.curation.duplicates import Dedupe
from aifx.curation.execution import execute
from aifx.curation.near import Bands, Clusters, SketchesOutdated, distinct_shingles
from aifx.curation.step import Limits
from aifx.data.names import CLUSTER, ROW
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Version


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def dedupe(catalog: Catalog, version: Version, near: float | None, *, mark: bool = False) -> Version:
    return execute(Dedupe((version,), near, mark), version.manifest.name, catalog, LIMITS).version


def clusters(version: Version) -> dict[str, str]:
    return {row[ROW]: row[CLUSTER] for row in rows_of(version.shards)}


def texts_with_copies(count: int, seed: int) -> list[str]:
    """Random texts, some of them edited a little, copied, or written in capitals."""
    texts = some_texts(count, seed, vocabulary=60, longest=40)
    more = [edited(text, 1 + index % 3, index) for index, text in enumerate(texts[: count // 2])]
    return [*texts, *more, *texts[: count // 5], *(text.upper() + "!" for text in texts[: count // 5])]


@pytest.mark.parametrize("near", [None, 0.5, 0.8, 0.95])
def test_clusters_are_those_of_comparing_all_pairs(catalog: Catalog, near: float | None) -> None:
    texts = numbered([*texts_with_copies(120, 7), "", "", "?", "!", "a", "A", "中文字", "中文字。"])
    marked = dedupe(catalog, texts_version(catalog, texts, 50), near, mark=True)
    expected = clusters_of(texts, near)
    assert clusters(marked) == expected
    assert marked.manifest.facts["clusters"] == len(set(expected.values())) - sum(
        list(expected.values()).count(kept) == 1 for kept in set(expected.values())
    )
    if near is not None:
        assert marked.manifest.facts["pairs"] > 0


def test_one_row_of_each_cluster_is_kept(catalog: Catalog) -> None:
    texts = numbered(texts_with_copies(100, 3))
    made = dedupe(catalog, texts_version(catalog, texts, 40), 0.7)
    expected, by_row = clusters_of(texts, 0.7), dict(texts)
    kept = [row[ROW] for row in rows_of(made.shards)]
    assert kept == sorted(set(expected.values()), key=order_of)
    dropped = {row[ROW]: (row["rule"], row["twin"]) for row in rows_of(made.dropped)}
    assert dropped.keys() == by_row.keys() - set(kept)
    for row, (rule, twin) in dropped.items():
        before = [text for other, text in texts if order_of(other) < order_of(row)]
        assert rule == ("exact" if by_row[row] in before else "near")
        assert twin == expected[row]
    assert made.manifest.dropped_by == {
        "exact": made.manifest.facts["exact"],
        "near": made.manifest.facts["near"],
    }


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000), st.randoms(use_true_random=False), st.integers(1, 60), st.sampled_from([None, 0.6, 0.8]))
@pytest.mark.slow
def test_order_and_shards_do_not_matter(seed: int, chosen: object, per_shard: int, near: float | None) -> None:
    """And what is kept has no duplicates, so that the same step drops nothing of it."""
    texts = numbered(texts_with_copies(20, seed))
    shuffled = list(texts)
    chosen.shuffle(shuffled)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        catalog = open_catalog(folder)
        one = dedupe(catalog, texts_version(catalog, texts, 1000), near)
        other = dedupe(catalog, texts_version(catalog, shuffled, per_shard), near)
        assert sorted(rows_of(one.shards), key=lambda row: order_of(row[ROW])) == sorted(
            rows_of(other.shards), key=lambda row: order_of(row[ROW])
        )
        kept = [(row[ROW], row["text"]) for row in rows_of(other.shards)]
        again = dedupe(catalog, texts_version(catalog, kept, per_shard), near)
        assert again.manifest.dropped_by == {}
        assert [(row[ROW], row["text"]) for row in rows_of(again.shards)] == kept


@pytest.mark.slow
def test_processes_make_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        catalog = open_catalog(str(tmp_path / str(workers)))
        version = texts_version(catalog, numbered(texts_with_copies(60, 1)), 25)
        made = execute(Dedupe((version,), 0.8), "texts", catalog, Limits(1 << 30, workers)).version
        found.append([path.read_bytes() for path in (*made.shards, *made.dropped, made.path / "manifest.json")])
    assert found[0] == found[1]


def test_copies_of_images(catalog: Catalog) -> None:
    images = pa.table(
        {
            ROW: [f"0123456789ab-{number}" for number in range(4)],
            "image": pa.array([b"\xff\x00", b"\x89PNG", b"\xff\x00", b""], pa.binary()),
            "label": ["cat", None, "dog", "cat"],
        }
    )
    version = execute(Made((), (images,), "images"), "pictures", catalog, LIMITS).version
    made = dedupe(catalog, version, None)
    assert [row["image"] for row in rows_of(made.shards)] == [b"\xff\x00", b"\x89PNG", b""]
    with pytest.raises(UsageError, match="--near is for text"):
        dedupe(catalog, version, 0.8)


def test_copies_of_table_rows(catalog: Catalog) -> None:
    """All columns count, but not those that aifx adds; null is not the empty string, and no two rows look alike."""
    rows = pa.table(
        {
            ROW: [f"0123456789ab-{number}" for number in range(7)],
            "_source": [f"{number}.csv" for number in range(7)],
            'a "b"': pa.array(["x", "x", "", None, "1:y", "1", None]),
            "n": pa.array([1.5, 1.5, None, None, 2.0, 2.0, None]),
            "t": pa.array(["z", "z", "z", "z", "z", "y1:z", "z"]),
        }
    )
    made = dedupe(catalog, execute(Made((), (rows,), "table"), "table", catalog, LIMITS).version, None)
    assert [row[ROW][-1] for row in rows_of(made.shards)] == ["0", "2", "3", "4", "5"]


def test_rows_are_ordered_by_file_and_number(catalog: Catalog) -> None:
    """The tenth row of a file comes after its second, and which file comes first does not depend on shards."""
    texts = [("bbbbbbbbbbbb-1", "same"), ("aaaaaaaaaaaa-10", "same"), ("aaaaaaaaaaaa-9", "same")]
    made = dedupe(catalog, texts_version(catalog, texts, 1), None)
    assert [row[ROW] for row in rows_of(made.shards)] == ["aaaaaaaaaaaa-9"]


def test_a_version_without_rows(catalog: Catalog) -> None:
    empty = pa.table({ROW: pa.array([], pa.string()), "text": pa.array([], pa.string())})
    version = execute(Made((), (empty,)), "texts", catalog, LIMITS).version
    made = dedupe(catalog, version, 0.8)
    assert (made.manifest.rows, made.manifest.dropped_by) == (0, {})
    assert CLUSTER in made.manifest.columns


def test_sketches_are_kept_and_those_of_another_algorithm_refused(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = texts_version(catalog, numbered(texts_with_copies(30, 2)), 20)
    made = dedupe(catalog, version, 0.8)
    folder = version.path.parent / "sketches"
    sketches = sorted(folder.glob("*.npy"))
    assert len(sketches) == len(version.shards)
    sketched: list[int] = []
    real = sketches_module.sketch_texts
    monkeypatch.setattr("aifx.curation.near.sketch_texts", lambda texts: sketched.append(len(texts)) or real(texts))
    sketches[0].write_bytes(sketches[0].read_bytes()[:-4])
    again = dedupe(catalog, version, 0.7)
    assert len(sketched) == 1  # only the damaged sketch is made again
    assert again.manifest.rows <= made.manifest.rows
    algorithm = folder / "algorithm.json"
    algorithm.write_text(algorithm.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(SketchesOutdated, match="another algorithm") as refused:
        dedupe(catalog, version, 0.6)
    assert "version is 1" in refused.value.why
    assert refused.value.hint == f"aifx data dedupe {version.reference} --near 0.6 --rebuild-sketches"


def test_sketches_that_a_killed_step_began_are_removed(catalog: Catalog) -> None:
    version = texts_version(catalog, numbered(texts_with_copies(5, 3)), 20)
    folder = version.path.parent / "sketches"
    (folder / "digests-1").mkdir(parents=True)
    for begun in (folder, folder / "digests-1"):
        (begun / ".of-a-shard.npy.0123456789ab.tmp").touch()
    dedupe(catalog, version, 0.8)
    assert list(folder.glob("*.npy"))
    assert list(folder.rglob("*.tmp")) == []


def test_a_file_in_place_of_the_folder_of_sketches_is_named(catalog: Catalog) -> None:
    version = texts_version(catalog, numbered(texts_with_copies(5, 3)), 20)
    (version.path.parent / "sketches").touch()
    with pytest.raises(UnsafeFile, match="sketches is a file"):
        dedupe(catalog, version, 0.8)


def test_buckets_that_are_too_wide_are_compared_with_their_neighbours(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_module, "MOST_COMPARED", 3)
    text = some_texts(1, 5, longest=80)[0] + " and more words so that it is long enough for edits to matter little"
    texts = numbered([edited(text, 1, seed) for seed in range(40)])
    made = dedupe(catalog, texts_version(catalog, texts, 50), 0.5)
    assert made.manifest.facts["wide_buckets"] > 0
    assert made.manifest.rows < 5


@pytest.mark.parametrize("near", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_what_is_at_the_threshold(near: float) -> None:
    bands = Bands.at(near)
    assert bands.recall(near) >= near_module.RECALL
    assert bands.rows * bands.count <= 96


def test_shingles_are_distinct_and_sorted() -> None:
    texts = ["a b c d e f a b c d e f", "", "one two", "x x x x x x x x"]
    shingles, counts = distinct_shingles(pa.array(texts))
    assert counts.tolist() == [len(shingles_of(text)) for text in texts]
    for part in np.split(shingles, np.cumsum(counts)[:-1]):
        assert sorted(set(part.tolist())) == part.tolist()
    assert jaccard(texts[0], texts[0]) == 1.0


@settings(deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60))
def test_union_find(rows: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(one % rows, two % rows) for one, two in pairs]
    names = list(range(rows))
    for one, two in pairs:
        low, high = sorted((names[one], names[two]))
        names = [low if name == high else name for name in names]
    clusters = Clusters(rows)
    for part in (pairs[::2], pairs[1::2]):
        clusters.join(np.array([one for one, _ in part], np.int64), np.array([two for _, two in part], np.int64))
    assert clusters.labels().tolist() == names
