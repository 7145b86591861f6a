"""`aifx data index` and `search`: the rows found, what an index belongs to, restarts and remote roots."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import uuid
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from inprocess import run
from pyarrow import parquet

from aifx.core.artifact import read_artifact
from aifx.curation.words import split_words
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version
from aifx.search import building
from aifx.search.embedders import HashedNgrams
from aifx.search.indexes import KIND, VERSION

BOOK = Path(__file__).parents[2] / "templates/language-model/data/moby_dick.txt"


def aifx(folder: Path, *args: str, root: str = "datasets") -> CompletedProcess[str]:
    return run(["data", *args, "--root", root], folder, {})


def found(done: CompletedProcess[str]) -> list[tuple[str, float]]:
    """The rows of a search for one query."""
    assert done.returncode == 0, done.stderr
    (query,) = json.loads(done.stdout)["queries"]
    return [(hit["row"], hit["score"]) for hit in query["hits"]]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Paragraphs of a book, an edited copy of one, and a row without words."""
    paragraphs = [one for one in BOOK.read_text().split("\n\n") if len(one.split()) > 20][:700]
    words = paragraphs[40].split()
    words[5] = "albatross"
    return [*paragraphs, " ".join(words), "?!"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("project")
    with (folder / "texts.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text, "title": f"title {n}"}) + "\n" for n, text in enumerate(texts))
    assert aifx(folder, "add", "corpus", "texts.jsonl", "--license", "MIT").returncode == 0
    done = aifx(folder, "index", "corpus", "--json")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def version(project: Path) -> Version:
    return open_catalog(str(project / "datasets")).open("corpus")


@pytest.fixture(scope="module")
def rows(version: Version) -> list[str]:
    return [row for path in version.shards for row in parquet.read_table(path)["_row"].to_pylist()]


def test_search_is_exact_search_in_numpy(project: Path, texts: list[str], rows: list[str]) -> None:
    embed = HashedNgrams().embed
    scores = (embed(pa.array(texts)) @ embed(pa.array(["the mast-head of a whaler"])).T).ravel()
    best = np.argsort(-scores, kind="stable")[:5]
    hits = found(aifx(project, "search", "corpus", "the mast-head of a whaler", "--top", "5", "--json"))
    assert [row for row, _ in hits] == [rows[number] for number in best]
    np.testing.assert_allclose([score for _, score in hits], scores[best], atol=1e-6)


def test_the_nearest_row_is_the_near_duplicate(project: Path, rows: list[str]) -> None:
    hits = found(aifx(project, "search", "corpus", "--like", rows[40], "--top", "3", "--json"))
    assert hits[0][0] == rows[700]
    assert hits[0][1] > 0.9 > hits[1][1]
    assert rows[40] not in [row for row, _ in hits]


def test_output_for_people(project: Path, texts: list[str]) -> None:
    done = aifx(project, "search", "corpus", texts[9][:60], "--top", "2")
    assert " ".join(texts[9].split())[:99] in done.stdout
    assert done.stdout.count("\n") == 3
    again = aifx(project, "index", "corpus")
    assert "701 vectors" in again.stdout
    assert "which was there already" in again.stdout
    assert re.search(r"left out.*: 1 row\n", again.stdout)


@pytest.mark.parametrize("name", ["queries.txt", "queries.jsonl"])
def test_a_file_of_queries(project: Path, texts: list[str], rows: list[str], name: str) -> None:
    """A part of each paragraph finds it."""
    chosen = random.Random(3).sample(range(40), 20)
    queries = [" ".join(split_words(texts[number])[:25]) for number in chosen]
    lines = queries if name.endswith("txt") else [json.dumps({"text": query}) for query in queries]
    (project / name).write_text("\n".join(lines) + "\n")
    done = aifx(project, "search", "corpus", "--file", name, "--top", "1", "--json")
    document = json.loads(done.stdout)
    assert [query["query"] for query in document["queries"]] == queries
    assert [query["hits"][0]["row"] for query in document["queries"]] == [rows[number] for number in chosen]


def test_another_column_and_several_indexes(project: Path, rows: list[str]) -> None:
    first = json.loads(aifx(project, "index", "corpus", "--json").stdout)["index"]["name"]
    done = aifx(project, "index", "corpus", "--column", "title", "--dims", "256", "--json")
    assert json.loads(done.stdout)["index"]["file"]["rows"] == len(rows)
    assert found(aifx(project, "search", "corpus", "title 123", "--json"))[0][0] == rows[123]  # the index made last
    by_name = found(aifx(project, "search", "corpus", "title 123", "--index", first[:4], "--json"))
    assert by_name[0][0] != rows[123]
    aifx(project, "index", "corpus")
    assert found(aifx(project, "search", "corpus", "title 123", "--json")) == by_name
    version = json.loads(aifx(project, "lineage", "corpus", "--json").stdout)["versions"][0]
    made = [output["name"].partition("/corpus/indexes/")[2] for output in version["outputs"]]
    folders = (project / "datasets/corpus/indexes").glob("*/*/manifest.json")
    assert sorted(made) == sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in folders)
    assert f"index: file://{project}/datasets/corpus/indexes/" in aifx(project, "lineage", "corpus").stdout


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("search", "corpus"), "there is nothing to search for"),
        (("search", "corpus", "a", "--like", "b"), "QUERY and --like cannot be used together"),
        (("search", "corpus", "whale \udcff"), "is not UTF-8"),
        (("search", "corpus", "?!"), "query '?!' cannot be searched for"),
        (("search", "corpus", "--like", "nothing"), "--like nothing names no row of corpus@"),
        (("search", "corpus", "a", "--index", "zz"), "--index zz names no index of corpus@"),
        (("search", "corpus", "a", "--embedder", "other"), "no embedder 'other'"),
        (("index", "corpus", "--column", "txt"), "did you mean 'text'?"),
        (("index", "corpus", "--min-recall", "0.9"), "--min-recall can only be used with --kind hnsw or ivf"),
        (("index", "corpus", "--kind", "ivf", "--dims", "65536", "--memory", "256MiB"), "does not fit into --memory"),
        (("index", "nothing"), "no data set 'nothing'"),
    ],
)
def test_usage(project: Path, args: tuple[str, ...], what: str) -> None:
    done = aifx(project, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr
    assert "hint: " in done.stderr


def test_columns_without_texts(project: Path) -> None:
    (project / "numbers.csv").write_text("number,word\n1,one\n2,two\n")
    assert aifx(project, "add", "numbers", "numbers.csv", "--license", "MIT").returncode == 0
    done = aifx(project, "index", "numbers", "--column", "number")
    assert "column 'number' of numbers@" in done.stderr
    assert "hint: --column word" in done.stderr
    done = aifx(project, "index", "numbers", "--column", "word", "--kind", "hnsw")
    assert "--kind hnsw" in done.stderr


@pytest.mark.slow
def test_recall_below_the_bound(project: Path, version: Version) -> None:
    """Exits 1, and a search still takes the index before."""
    aifx(project, "index", "corpus")
    done = aifx(project, "index", "corpus", "--kind", "ivf", "--effort", "1", "--min-recall", "0.99", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert not document["is_accepted"]
    assert document["index"]["recall"]["share"] < 0.9
    assert json.loads(aifx(project, "search", "corpus", "whale", "--json").stdout)["is_exact"]
    done = aifx(project, "index", "corpus", "--kind", "ivf", "--min-recall", "0.99")
    assert done.returncode == 0, done.stderr
    assert "passed: recall" in done.stdout
    assert "the index is approximate" in aifx(project, "search", "corpus", "whale").stderr
    aifx(project, "index", "corpus")


def test_an_index_belongs_to_its_version_and_its_embedder(
    project: Path, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = version.manifest.name
    assert aifx(project, "dedupe", "corpus", "--mark").returncode == 0
    try:
        refused = aifx(project, "search", "corpus", "whale")
        assert refused.returncode == 2
        assert "has no index" in refused.stderr
        assert f"{version.manifest.version} has other rows" in refused.stderr
        assert found(aifx(project, "search", version.reference, "whale", "--json"))
        monkeypatch.setattr("aifx.search.embedders.NGRAMS_ALGORITHM", 2)
        refused = aifx(project, "search", version.reference, "whale")
        assert refused.returncode == 2
        assert "algorithm is 1" in refused.stderr
    finally:
        open_catalog(str(project / "datasets")).set_latest(name, version.manifest.version)


def test_a_damaged_index_is_refused_and_made_again(project: Path, version: Version) -> None:
    made = json.loads(aifx(project, "index", "corpus", "--dims", "32", "--json").stdout)["index"]["name"]
    path = project / "datasets/corpus/indexes" / version.manifest.version / made / "index.faiss"
    good = path.read_bytes()
    path.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    refused = aifx(project, "search", "corpus", "whale")
    assert refused.returncode == 2
    assert "index.faiss is damaged" in refused.stderr
    assert f"hint: aifx data index {version.reference} --dims 32 --rebuild" in refused.stderr
    assert aifx(project, "index", version.reference, "--dims", "32", "--rebuild").returncode == 0
    assert path.read_bytes() == good
    index = read_artifact(path.parent, KIND, VERSION)
    for changed, why in (
        (replace(index, version=9), "of another format"),
        (replace(index, content={**index.content, "column": "tezt"}), "its settings"),
    ):
        path.with_name("manifest.json").write_bytes(changed.encode())
        assert why in aifx(project, "search", "corpus", "whale").stderr
    path.with_name("manifest.json").write_bytes(index.encode()[:-2])
    refused = aifx(project, "search", "corpus", "whale")
    assert refused.returncode == 2
    assert "is damaged" in refused.stderr
    assert aifx(project, "index", version.reference, "--dims", "32", "--rebuild").returncode == 0
    assert read_artifact(path.parent, KIND, VERSION).digest == index.digest
    aifx(project, "index", "corpus")


def test_a_restart_embeds_what_is_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "PIECE_ROWS", 100)
    calls, embed = [], HashedNgrams.embed

    def stopped(self: HashedNgrams, texts: pa.Array) -> np.ndarray:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(texts))
        return embed(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(HashedNgrams, "embed", stopped)
        assert aifx(project, "index", "corpus", "--dims", "48").returncode == 130
    assert calls == [100] * 3

    def counted(self: HashedNgrams, texts: pa.Array) -> np.ndarray:
        calls.append(len(texts))
        return embed(self, texts)

    monkeypatch.setattr(HashedNgrams, "embed", counted)
    done = json.loads(aifx(project, "index", "corpus", "--dims", "48", "--json").stdout)
    assert sum(calls) == 702
    again = json.loads(aifx(project, "index", "corpus", "--dims", "48", "--rebuild", "--json").stdout)
    assert again["index"] == done["index"]  # with the SHA-256 of its bytes
    assert not list((project / "datasets/corpus/indexes").rglob(".work-*"))
    aifx(project, "index", "corpus")


@pytest.mark.parametrize("size", [0, 20, 1000, -1])
def test_a_damaged_piece_is_embedded_again(project: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    command = ["index", "corpus", "--dims", "40", "--rebuild", "--json"]
    good = json.loads(aifx(project, *command).stdout)["index"]["file"]
    with monkeypatch.context() as patch:
        patch.setattr(building, "_publish", stopped)
        assert aifx(project, *command).returncode == 130
    (piece,) = (project / "datasets/corpus/indexes").rglob(".work-*/00000-00000.*")
    assert len(piece.parent.name.removeprefix(".work-")) == 64
    data = bytearray(piece.read_bytes())
    data[5000] ^= 1
    piece.write_bytes(data if size < 0 else data[:size])
    done = aifx(project, *command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["index"]["file"] == good
    aifx(project, "index", "corpus")


def test_a_disk_that_is_full(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = found(aifx(project, "search", "corpus", "whale", "--json"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)  # a write to a mapped file would end the process
        done = aifx(project, "index", "corpus", "--dims", "24")
    assert (done.returncode, "vectors.f32" in done.stderr, "disk is full" in done.stderr) == (2, True, True)
    with monkeypatch.context() as patch:
        patch.setattr(building, "INDEX_FILE", "/dev/full")
        done = aifx(project, "index", "corpus", "--dims", "24")
    assert (done.returncode, "disk is full" in done.stderr) == (2, True), done.stderr
    assert found(aifx(project, "search", "corpus", "whale", "--json")) == before


def test_vectors_that_are_not_finite(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = HashedNgrams.embed
    monkeypatch.setattr(HashedNgrams, "embed", lambda self, texts: embed(self, texts) * np.float32("nan"))
    for command in (["index", "corpus", "--dims", "28"], ["search", "corpus", "whale"]):
        done = aifx(project, *command)
        assert (done.returncode, "are not finite" in done.stderr) == (2, True), done.stderr


def test_remote_root(project: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    assert aifx(project, "add", "corpus", "texts.jsonl", "--license", "MIT", root=root).returncode == 0
    done = aifx(project, "index", "corpus", "--json", root=root)
    assert done.returncode == 0, done.stderr
    here = json.loads(aifx(project, "index", "corpus", "--json").stdout)
    assert json.loads(done.stdout)["index"]["file"]["sha256"] == here["index"]["file"]["sha256"]
    local = found(aifx(project, "search", "corpus", "white whale", "--json"))
    assert found(aifx(project, "search", "corpus", "white whale", "--json", root=root)) == local


def test_erasure_deletes_the_indexes_of_versions(tmp_path: Path) -> None:
    (tmp_path / "pets.jsonl").write_text('{"text": "a dog"}\n{"text": "jane@example.org"}\n')
    assert aifx(tmp_path, "add", "pets", "pets.jsonl", "--license", "MIT").returncode == 0
    indexes = tmp_path / "datasets/pets/indexes"
    (version,) = open_catalog(str(tmp_path / "datasets")).versions("pets")
    (indexes / version / ".work-0123456789abcdef").mkdir(parents=True)  # of a command that was killed
    refused = aifx(tmp_path, "search", "pets", "dog").stderr
    assert "has no index" in refused
    assert "other rows" not in refused
    assert aifx(tmp_path, "index", "pets").returncode == 0
    assert list(indexes.rglob("index.faiss"))
    done = aifx(tmp_path, "erase", "pets", "--where", "text LIKE '%jane%'", "--purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert not list(indexes.rglob("*.faiss"))


def test_a_search_takes_no_index_that_misses_its_recall(tmp_path: Path) -> None:
    """Unless it is named, also if there is no other."""
    rows = [json.dumps({"text": f"row {number} of {number % 7}"}) for number in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    assert aifx(tmp_path, "add", "small", "rows.jsonl", "--license", "MIT").returncode == 0
    refused = aifx(tmp_path, "search", "small", "row 5")
    assert "aifx data index small" in refused.stderr
    made = aifx(tmp_path, "index", "small", "--kind", "hnsw", "--effort", "1", "--min-recall", "1", "--json")
    assert made.returncode == 1
    name = json.loads(made.stdout)["index"]["name"]
    refused = aifx(tmp_path, "search", "small", "row 5")
    assert refused.returncode == 2
    assert f"{name} has recall" in refused.stderr
    assert len(found(aifx(tmp_path, "search", "small", "row 5", "--index", name, "--json"))) == 10
    index = next((tmp_path / "datasets/small/indexes").glob(f"*/{name}/index.faiss"))
    index.write_bytes(index.read_bytes()[:-1])
    damaged = aifx(tmp_path, "search", "small", "row 5", "--index", name)
    assert "--kind hnsw --min-recall 1 --effort 1 --rebuild" in damaged.stderr


def test_an_error_of_queries_names_the_field_that_has_texts(project: Path) -> None:
    (project / "q.jsonl").write_text('{"question": "a whale"}\n')
    done = aifx(project, "search", "corpus", "--file", "q.jsonl")
    assert "hint: --text-field question" in done.stderr
