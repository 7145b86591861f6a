"""Text of a data set's version: its splits, its token store, and what damages or lacks it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from prose import prose
from stored_versions import make_version

from aifx.core.artifact import MANIFEST
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.data.corpus import open_corpora
from aifx.data.sections import TextSection
from aifx.data.splits import SPLITS
from aifx.data.text import TextData, TextFormat
from aifx.data.versions.catalog import TOKENS, whole_reference

TEXTS = [prose(120, seed) for seed in range(40)]


def texts_of(project: Project, reference: str, **keys: object) -> dict[str, list[str]]:
    """The documents of each split."""
    (corpus,) = open_corpora(TextSection(dataset=reference, **keys), project)
    found: dict[str, list[str]] = {split: [""] for split in SPLITS}
    for split, piece in corpus.pieces():
        found[split][-1] += piece.text
        if piece.closes:
            found[split].append("")
    return {split: list(filter(None, texts)) for split, texts in found.items()}


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_the_batches_are_those_of_the_file(
    project: Project, write: Callable[..., Path], open_: Callable[..., TextData], packing: str
) -> None:
    write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    version = make_version(project, "corpus", {"text": TEXTS}, shards=3)
    keys = {"packing": packing, "validation_fraction": 0.2, "test_fraction": 0.2}
    of_file = open_("file", train=("data/a.jsonl",), split="document", **keys)
    of_version = open_("version", dataset=version.reference, **keys)
    assert of_file.tokenizer.data == of_version.tokenizer.data
    for split, seed in (("train", 3), ("validation", None), ("test", None)):
        one, other = (data.source(split, 4, seed=seed) for data in (of_file, of_version))
        assert one.num_batches == other.num_batches
        for step in range(one.num_batches or 50):
            for name, values in one.read(step, slice(None)).items():
                np.testing.assert_array_equal(values, other.read(step, slice(None))[name])


def test_the_token_store_is_beside_the_data_set(project: Project, open_: Callable[..., TextData]) -> None:
    version = make_version(project, "corpus", {"text": TEXTS})
    store = open_(dataset="corpus").store.path
    assert store.parent == project.root / "datasets" / TOKENS / version.manifest.version
    written = (store / MANIFEST).stat().st_mtime_ns
    assert open_("other", dataset="corpus").store.path == store
    assert (store / MANIFEST).stat().st_mtime_ns == written


def test_a_store_that_is_there_needs_no_rows(project: Project, open_: Callable[..., TextData]) -> None:
    version = make_version(project, "corpus", {"text": TEXTS})
    digest = open_(dataset="corpus").digest
    for shard in version.shards:
        shard.unlink()
    assert open_(dataset="corpus").digest == digest


@pytest.mark.parametrize("split", ["document", "block"])
def test_the_column_of_splits_decides(project: Project, split: str) -> None:
    named = [SPLITS[index % 3] for index in range(len(TEXTS))]
    make_version(project, "corpus", {"text": TEXTS, "_split": named, "_cluster": ["one"] * len(TEXTS)}, shards=2)
    found = texts_of(project, "corpus", split=split)
    assert found == {name: TEXTS[number::3] for number, name in enumerate(SPLITS)}


def test_a_split_that_no_row_names(project: Project, open_: Callable[..., TextData]) -> None:
    make_version(project, "corpus", {"text": TEXTS, "_split": ["train"] * len(TEXTS)})
    data = open_(dataset="corpus")
    with pytest.raises(DataError, match="no validation split") as refused:
        data.source("validation", 4, seed=None)
    assert "_split" in refused.value.why


def test_another_word_in_the_column_of_splits(project: Project, open_: Callable[..., TextData]) -> None:
    make_version(project, "corpus", {"text": TEXTS, "_split": ["dev"] * len(TEXTS)})
    with pytest.raises(DataError, match="'dev' in column _split"):
        open_(dataset="corpus")


def test_a_cluster_is_in_one_split(project: Project) -> None:
    clusters = [f"r-{index % 8}" for index in range(len(TEXTS))]
    make_version(project, "corpus", {"text": TEXTS, "_cluster": clusters})
    found = texts_of(project, "corpus", validation_fraction=0.3, test_fraction=0.3)
    of = {split: {clusters[TEXTS.index(text)] for text in texts} for split, texts in found.items()}
    assert all(of.values())
    assert sum(map(len, of.values())) == 8


def test_one_document_may_be_cut_by_block(project: Project, open_: Callable[..., TextData]) -> None:
    book = prose(3000)
    make_version(project, "book", {"text": [book]})
    found = texts_of(project, "book", split="block")
    assert [len(texts) for texts in found.values()] == [1, 1, 1]
    assert "".join(found[split][0] for split in SPLITS) == book
    with pytest.raises(DataError, match="split is shorter") as refused:
        open_(dataset="book")
    assert refused.value.hint == "aifx train --set data.split=block"
    assert open_("again", dataset="book", split="block").counts


def test_a_warning_of_near_duplicates(
    project: Project, open_: Callable[..., TextData], caplog: pytest.LogCaptureFixture
) -> None:
    make_version(project, "corpus", {"text": TEXTS})
    make_version(project, "clustered", {"text": TEXTS, "_cluster": list(map(str, range(len(TEXTS))))})
    make_version(project, "book", {"text": [prose(3000)]})
    with caplog.at_level(logging.WARNING):
        open_("a", dataset="corpus")
        open_("a", dataset="corpus")
        open_("b", dataset="clustered")
        open_("c", dataset="book", split="block")
    (line,) = [record.getMessage() for record in caplog.records if "near-duplicates" in record.getMessage()]
    assert "aifx data split corpus" in line


def test_the_tokenizer_is_of_the_training_split(project: Project, open_: Callable[..., TextData]) -> None:
    """Characters that held-out rows alone have are no tokens of their own."""
    texts, named = [*TEXTS, "Ω" * 4000, "Ж" * 4000], ["train"] * len(TEXTS) + ["validation", "test"]
    make_version(project, "corpus", {"text": texts, "_split": named})
    tokenizer = open_(dataset="corpus", tokenizer="char", vocab_size=None).tokenizer
    assert "Ω" not in "".join(TEXTS)
    assert len(tokenizer.encode("Ω")) == 2
    assert len(tokenizer.encode("β")) == 1


def test_a_damaged_shard_is_named(project: Project, open_: Callable[..., TextData]) -> None:
    version = make_version(project, "corpus", {"text": TEXTS}, shards=2)
    data = bytearray(version.shards[1].read_bytes())
    data[len(data) // 2] ^= 1
    version.shards[1].write_bytes(data)
    with pytest.raises(DataError, match=version.manifest.shards[1].name) as refused:
        open_(dataset="corpus")
    assert refused.value.hint == f"aifx data verify {version.reference}"


def test_a_root_that_cannot_be_written(
    project: Project, open_: Callable[..., TextData], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(project, "corpus", {"text": TEXTS})
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "cache" in open_(dataset="corpus").store.path.parts


def test_a_version_that_is_not_there(project: Project, open_: Callable[..., TextData]) -> None:
    with pytest.raises(UsageError, match="no data set 'corpus'") as refused:
        open_(dataset="corpus")
    assert refused.value.hint.startswith("aifx data add corpus")
    version = make_version(project, "corpus", {"text": TEXTS}).manifest.version
    with pytest.raises(UsageError) as refused:
        open_(dataset="corpsu")
    assert refused.value.why == "did you mean 'corpus'?"
    with pytest.raises(UsageError, match="'corpus@0000' names no version") as refused:
        open_(dataset="corpus@0000")
    assert version in refused.value.why
    make_version(project, "points", {"x": [1, 2]}, "table")
    with pytest.raises(DataError, match=r"holds table.*text"):
        open_(dataset="points")


def test_a_reference_means_what_it_meant(project: Project) -> None:
    old = make_version(project, "corpus", {"text": TEXTS}).manifest.whole_reference
    new = make_version(project, "corpus", {"text": TEXTS[1:]}).manifest.whole_reference
    assert whole_reference("corpus", project) == new
    assert whole_reference("corpus", project, old) == old
    assert whole_reference(old[:11], project, new) == old
    assert whole_reference("corpus", project, "other@3f2a00000000") == new


@pytest.mark.slow
def test_a_row_group_is_in_memory_at_a_time(project: Project) -> None:
    """A data set may be larger than memory: its text is read in parts, and the tokens are on disk."""
    texts = ["".join(np.random.default_rng(n).choice(list("abcdef gh"), 4000)) for n in range(2000)]
    make_version(project, "corpus", {"text": texts}, shards=20)
    (corpus,) = open_corpora(TextSection(dataset="corpus"), project)
    before, most, seen = pa.total_allocated_bytes(), 0, 0
    for _, piece in corpus.pieces():
        most = max(most, pa.total_allocated_bytes() - before)
        seen += piece.num_bytes
    assert seen == sum(map(len, texts))
    assert most < seen / 4


def test_a_remote_root(project: Project, open_: Callable[..., TextData], tmp_path: Path) -> None:
    """The version is copied into the cache, the token store is there too, and a second opening copies nothing."""
    local = make_version(project, "corpus", {"text": TEXTS}, shards=2)
    before = open_("local", dataset="corpus")
    remote = Project(project.root, "memory://store-of-a-test")
    make_version(remote, "corpus", {"text": TEXTS}, shards=2)
    section = TextSection(seq_len=16, vocab_size=300, dataset="corpus")
    data = TextFormat.open(section, remote, project.root / "remote")[1]
    assert isinstance(data, TextData)
    assert data.digest == before.digest
    assert data.store.path.is_relative_to(tmp_path / "cache/tokens")
    stored = fsspec.filesystem("memory")
    for shard in local.manifest.shards:
        stored.rm(f"/store-of-a-test/corpus/{local.manifest.version}/{shard.name}")
    assert TextFormat.open(section, remote, project.root / "remote")[1].digest == data.digest
