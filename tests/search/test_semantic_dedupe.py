"""Duplicates by vectors: the clusters are those of comparing all pairs, and planted copies are found."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import aifx
from aifx.core.errors import UsageError
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.shards import read_shard
from aifx.search import semantic
from aifx.search.embedders import HashedNgrams

WORDS = [f"{first}{second}{third}" for first in "bdgk" for second in "aeiou" for third in ("lm", "rs", "nt", "st")]


def texts_with_copies(count: int, seed: int) -> list[str]:
    """Random texts; some are copies, copies in another order, or have one word replaced."""
    chosen = random.Random(seed)
    texts = [" ".join(chosen.choices(WORDS, k=chosen.randint(8, 30))) for _ in range(count)]
    for text in texts[: count // 3]:
        words = text.split()
        place = chosen.randrange(len(words))
        words[place] = chosen.choice(WORDS)
        texts += [" ".join(words), " ".join(reversed(text.split())), text + " " + text]
    return [*texts, texts[1], "?", "?", "!"]


def add(folder: Path, texts: Sequence[str]) -> str:
    lines = "".join(f'{{"text": "{text}"}}\n' for text in texts)
    (folder / "texts.jsonl").write_text(lines)
    return aifx.data_add("corpus", str(folder / "texts.jsonl"), license="MIT", root=str(folder / "datasets")).reference


def clusters_of(texts: Sequence[str], cosine: float) -> list[int]:
    """The first text of each one's cluster, by comparing all pairs."""
    vectors = HashedNgrams().embed(pa.array(texts)).astype(np.float64)
    first = list(range(len(texts)))

    def find(number: int) -> int:
        while first[number] != number:
            number = first[number]
        return number

    for one, other in zip(*np.nonzero(np.triu(vectors @ vectors.T >= cosine, 1)), strict=True):
        low, high = sorted((find(int(one)), find(int(other))))
        first[high] = low
    for number, text in enumerate(texts):
        if text in texts[:number]:
            low, high = sorted((find(texts.index(text)), find(number)))
            first[high] = low
    return [find(number) for number in range(len(texts))]


@pytest.mark.parametrize(("cosine", "exact_rows"), [(0.92, 1 << 16), (0.75, 1 << 16), (0.92, 0)])
def test_clusters_are_those_of_comparing_all_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cosine: float, exact_rows: int
) -> None:
    monkeypatch.setattr(semantic, "BLOCK", 64)
    monkeypatch.setattr(semantic, "EXACT_ROWS", exact_rows)
    monkeypatch.setattr(semantic, "LEAST_RECALL", 1.0)  # the index looks at all clusters then
    texts = texts_with_copies(90, 3)
    add(tmp_path, texts)
    made = aifx.data_dedupe("corpus", semantic=cosine, root=str(tmp_path / "datasets"))
    version = open_catalog(str(tmp_path / "datasets")).open(made.reference)
    expected = clusters_of(texts, cosine)
    prefix = read_shard(version.shards[0], ["_row"])["_row"][0].as_py().partition("-")[0]
    dropped = [row for path in version.dropped for row in read_shard(path).to_pylist()]
    found = {row["_row"]: row["twin"] for row in dropped}
    assert found == {f"{prefix}-{number}": f"{prefix}-{kept}" for number, kept in enumerate(expected) if kept != number}
    assert len(found) > 20
    copies = sum(text in texts[:number] for number, text in enumerate(texts))
    assert made.dropped_by == {"exact": copies, semantic.SEMANTIC: len(found) - copies}
    assert ("recall" in made.facts) == (exact_rows == 0)
    assert version.manifest.step.settings["embedder"]["name"] == "ngrams"
    assert not aifx.data_dedupe("corpus", semantic=cosine, root=str(tmp_path / "datasets")).is_new


def test_texts_of_one_vector_have_the_cosine_1_and_those_without_words_none(tmp_path: Path) -> None:
    texts = ["hello world", "Hello  World", "a b c d e", "A b c  d e", "!!!", "???", "another text"]
    add(tmp_path, texts)
    made = aifx.data_dedupe("corpus", semantic=1, root=str(tmp_path / "datasets"))
    assert (made.rows, made.dropped_by) == (5, {"semantic": 2})
    first = made.parents[0]
    nearly_all = aifx.data_dedupe(first, semantic=1e-9, root=str(tmp_path / "datasets"))
    kept = aifx.data_query(nearly_all.reference, "SELECT text FROM data", root=str(tmp_path / "datasets")).rows
    assert {("!!!",), ("???",)} <= set(kept)


def test_the_step_goes_to_other_processes_without_its_model(tmp_path: Path) -> None:
    reference = add(tmp_path, ["a b c"])
    version = open_catalog(str(tmp_path / "datasets")).open(reference)
    step = semantic.SemanticDedupe((version,), cosine=0.9, embedder=HashedNgrams())
    there = pickle.loads(pickle.dumps(step))
    assert (there.embedder, there.cosine, there.task_settings) == (None, 0.9, {"mark": False})


def test_what_cannot_be_done_is_named(tmp_path: Path) -> None:
    add(tmp_path, ["a b c"])
    root = str(tmp_path / "datasets")
    with pytest.raises(UsageError, match="not above 0"):
        aifx.data_dedupe("corpus", semantic=1.5, root=root)
    with pytest.raises(UsageError, match="not above 0"):
        aifx.data_dedupe("corpus", semantic=float("nan"), root=root)
    with pytest.raises(UsageError, match="cannot be used together"):
        aifx.data_dedupe("corpus", semantic=0.9, near=0.8, root=root)
    with pytest.raises(UsageError, match="can only be used with --semantic"):
        aifx.data_dedupe("corpus", embedder="ngrams", root=root)
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    aifx.data_add("table", str(tmp_path / "t.csv"), kind="table", license="MIT", root=root)
    with pytest.raises(UsageError, match="is for text"):
        aifx.data_dedupe("table", semantic=0.9, root=root)
