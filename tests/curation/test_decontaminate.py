"""Overlaps with a test: all fragments of 13 words or more are found, and nothing else."""

from __future__ import annotations

import gzip
import json
import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inprocess import run
from made_rows import LIMITS, Made, numbered, rows_of, some_texts, texts_version, words_of

from aifx.core.errors import EnvironmentFault
from aifx.core.project import Project
from aifx.curation import decontaminate as decontaminate_module
from aifx.curation.decontaminate import Decontaminate, Reference, build_index, find_contamination
from aifx.curation.duplicates import Split
from aifx.curation.execution import execute
from aifx.curation.references import ReferenceFiles, held_out_references
from aifx.curation.step import Limits
from aifx.data.names import ROW, SPLIT
from aifx.data.sections import TextSection
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version


def overlapping(texts: list[tuple[str, str]], tests: list[str]) -> dict[str, int]:
    """Words of the longest fragment that each row shares with a test, by comparing all runs."""
    found = {}
    for row, text in texts:
        words, longest = words_of(text), 0
        for test in tests:
            theirs = words_of(test)
            runs = {tuple(theirs[at : at + 13]) for at in range(len(theirs) - 12)}
            here = [tuple(words[at : at + 13]) in runs for at in range(len(words) - 12)]
            longest = max(longest, longest_series(here))
        if longest:
            found[row] = longest + 12
    return found


def longest_series(values: list[bool]) -> int:
    longest = here = 0
    for value in values:
        here = here + 1 if value else 0
        longest = max(longest, here)
    return longest


def planted(seed: int, count: int) -> tuple[list[str], list[str]]:
    """Texts, and tests with fragments of them of 8 to 20 words, in other case and punctuation."""
    chosen = random.Random(seed)
    texts = some_texts(count, seed, vocabulary=5000, longest=80)
    tests = []
    for text in chosen.sample(texts, count // 2):
        words, length = text.split(), chosen.randint(8, 20)
        begin = chosen.randrange(max(len(words) - length, 1))
        fragment = " ".join(words[begin : begin + length])
        tests.append(f"Zuerst, {fragment.upper().replace(' ', ', ', 3)}! und dann noch etwas ganz anderes é中文")
    return texts, tests


def references(version: Version) -> tuple[Reference, ...]:
    return (Reference("test", version, version.manifest.sha256, is_held_out=False, has_ids=True),)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(5, 60))
def test_all_planted_fragments_are_found_and_none_else(seed: int, per_shard: int) -> None:
    texts, tests = planted(seed, 40)
    with tempfile.TemporaryDirectory() as folder:
        catalog, work = open_catalog(folder), Path(folder, "index")
        work.mkdir()
        version = texts_version(catalog, numbered(texts), per_shard)
        against = references(texts_version(catalog, numbered(tests), 7, "tests"))
        found = find_contamination(version, against, work, LIMITS, 1000)
    expected = overlapping(numbered(texts), tests)
    assert {each.row: each.words for each in found.overlaps} == expected
    assert found.overlapping == len(expected)
    for each in found.overlaps:
        twin = dict(numbered(tests))[each.twin or ""]
        fragment = words_of(each.text)[:13]
        assert " ".join(fragment) in " ".join(words_of(twin))


def test_hashes_that_collide_are_compared_word_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decontaminate_module.word_runs

    def colliding(*args: object, **options: object) -> object:
        runs = real(*args, **options)  # type: ignore[arg-type]
        runs.hashes[:] &= np.uint64(3)
        return runs

    monkeypatch.setattr(decontaminate_module, "word_runs", colliding)
    catalog = open_catalog(str(tmp_path))
    version = texts_version(catalog, numbered(some_texts(20, 1, vocabulary=5000)), 10)
    other = texts_version(catalog, numbered(some_texts(20, 2, vocabulary=5000)), 10, "tests")
    (tmp_path / "index").mkdir()
    assert find_contamination(version, references(other), tmp_path / "index", LIMITS, 10).overlapping == 0


def test_an_index_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.curation.decontaminate.BYTES_PER_RUN", 10**6)
    version = texts_version(open_catalog(str(tmp_path)), numbered(some_texts(50, 1)), 50)
    with pytest.raises(EnvironmentFault, match="is too little"):
        build_index(references(version), tmp_path, Limits(10_000, 1))


def aifx(folder: Path, *args: str) -> CompletedProcess[str]:
    return run(["data", *args], folder, dict(os.environ))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a data set, whose seventh text is in test.txt and whose ninth is in a data set `benchmark`."""
    texts = some_texts(30, 4, vocabulary=4000, longest=100)
    texts[6] += " " + " ".join(f"seven{number}" for number in range(13))
    texts[8] += " " + " ".join(f"Nine{number}," for number in range(40))
    catalog = open_catalog(str(tmp_path / "datasets"))
    texts_version(catalog, numbered(texts), 12, "corpus")
    texts_version(catalog, numbered(["short", " ".join(f"nine{number}" for number in range(30))]), 12, "benchmark")
    (tmp_path / "test.txt").write_text("x " + " ".join(f"Seven{number};" for number in range(13)) + " y")
    (tmp_path / "aifx.toml").write_text('[project]\nname = "p"\n')
    return tmp_path


@pytest.mark.slow
def test_overlaps_are_listed(project: Path) -> None:
    done = aifx(project, "decontaminate", "corpus", "--against", "test.txt", "--against", "benchmark")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("0123456789ab-6 of f.txt: 13")
    assert "test.txt" in lines[0]
    assert lines[1].startswith("  seven0 seven1 ")
    assert lines[2].startswith("0123456789ab-8 of f.txt: 30")
    assert "2 of 30 rows" in lines[-1]
    assert "2 rows of benchmark@" in done.stderr
    assert "shorter than 13 words" in done.stderr
    found = json.loads(
        aifx(project, "decontaminate", "corpus", "--against", "benchmark", "--show", "0", "--json").stdout
    )
    assert (found["overlapping"], found["overlaps"]) == (1, [])
    assert list(found["by_reference"].values()) == [1]


@pytest.mark.slow
def test_drop_makes_a_version_without_them(project: Path) -> None:
    done = aifx(project, "decontaminate", "corpus", "--against", "test.txt", "--against", "benchmark", "--drop")
    assert done.returncode == 0, done.stderr
    catalog = open_catalog(str(project / "datasets"))
    version, benchmark = catalog.open("corpus"), catalog.manifest("benchmark").reference
    assert version.manifest.rows == 28
    assert rows_of(version.dropped) == [
        {ROW: "0123456789ab-6", "rule": "overlaps test.txt", "twin": None},
        {ROW: "0123456789ab-8", "rule": f"overlaps {benchmark}", "twin": "0123456789ab-1"},
    ]
    again = aifx(project, "decontaminate", "corpus", "--against", "test.txt")
    assert (again.returncode, again.stdout.strip()) == (0, f"no row of {version.reference} overlaps")
    (project / "test.txt").write_text("another test")
    other = version.manifest.parents[0]
    changed = json.loads(aifx(project, "decontaminate", other, "--against", "test.txt", "--drop", "--json").stdout)
    assert (changed["rows"], changed["is_new"]) == (30, True)


def test_a_shard_is_compared_with_the_same_texts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, texts = open_catalog(str(tmp_path)), numbered(some_texts(40, 1, vocabulary=5000, longest=80))
    tests = [" ".join(text.split()[:20]) for _, text in texts if len(text.split()) > 40][::3]
    against = references(texts_version(catalog, numbered(tests), 9, "tests"))
    scanned: list[str] = []
    real = decontaminate_module._scan
    monkeypatch.setattr(
        decontaminate_module,
        "_scan",
        lambda work, columns, shard: scanned.append(shard[0].name) or real(work, columns, shard),
    )
    few = execute(Decontaminate((texts_version(catalog, texts[:20], 10),), against), "texts", catalog, LIMITS).version
    assert len(scanned) == 2
    kept = sorted((tmp_path / "texts" / "sketches").rglob("*.parquet"))
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:-9])
    every = execute(Decontaminate((texts_version(catalog, texts, 10),), against), "texts", catalog, LIMITS).version
    assert len(scanned) == 2 + 1 + 2  # a damaged one is made again
    dropped = {row[ROW] for row in rows_of(every.dropped)}
    assert dropped == overlapping(texts, tests).keys()
    assert {row[ROW] for row in rows_of(few.dropped)} == dropped & {row for row, _ in texts[:20]}
    other = Decontaminate((texts_version(catalog, texts, 10),), (replace(against[0], digest="1" * 64),))
    execute(other, "texts", catalog, LIMITS)
    assert len(scanned) == 5 + 4


def test_the_files_of_the_project_are_the_default(project: Path) -> None:
    nothing = aifx(project, "decontaminate", "corpus")
    assert nothing.returncode == 2
    assert "corpus@" in nothing.stderr
    assert "aifx data decontaminate corpus --against FILE" in nothing.stderr
    (project / "aifx.toml").write_text('[project]\nname = "p"\n[data]\ntest = ["test*.txt"]\n')
    found = json.loads(aifx(project, "decontaminate", "corpus", "--json").stdout)
    assert [overlap["row"] for overlap in found["overlaps"]] == ["0123456789ab-6"]


def compared(project: Path, folder: Path | None = None) -> tuple[dict[str, int], list[str]]:
    """The number of texts of each reference by its name, and the rows that overlap."""
    done = aifx(folder or project, "decontaminate", "corpus", "--json")
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    return {each["name"]: each["texts"] for each in found["against"]}, [each["row"] for each in found["overlaps"]]


def refusal(project: Path) -> str:
    done = aifx(project, "decontaminate", "corpus")
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.slow
def test_the_held_out_share_of_the_training_files_is_the_default(project: Path) -> None:
    config = '[project]\nname = "p"\n[data]\ntrain = ["texts/*.jsonl"]\ntext_field = "body"\nsplit = "document"\n'
    (project / "aifx.toml").write_text(config + "validation_fraction = 0.5\ntest_fraction = 0.4\n")
    (project / "texts").mkdir()
    seven = " ".join(f"seven{number}" for number in range(13))
    lines = [json.dumps({"body": f"{number} {seven if number < 9 else ''}"}) for number in range(20)]
    (project / "texts" / "a.jsonl").write_text("\n".join(lines))
    (against, rows), inside = compared(project), project / "texts"
    ((held_out, count),) = against.items()
    assert "data.train" in held_out
    assert 10 < count < 20
    assert rows == ["0123456789ab-6"]
    assert compared(project, inside) == (against, rows)
    (project / "aifx.toml").write_text(config + "validation_fraction = 0\ntest_fraction = 0\n")
    assert "split of a project" in refusal(project)
    (project / "aifx.toml").write_text(config.replace("texts/*.jsonl", "f.txt"))
    (project / "f.txt").write_text("text")  # the rows of corpus have this source
    texts_version(open_catalog(str(project / "datasets")), numbered(some_texts(3, 1)), 9, "corpus")
    refused = refusal(project)
    assert "f.txt" in refused
    assert "data.validation_fraction" in refused


def test_held_out_files_may_be_in_a_store(tmp_path: Path) -> None:
    version = texts_version(open_catalog(str(tmp_path / "datasets")), numbered(some_texts(3, 1)), 9, "corpus")
    url = (tmp_path / "validation.jsonl").as_uri()
    (tmp_path / "validation.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "test.txt").write_text("three")
    section = TextSection(train=("test.txt",), validation=(url,), test=("test.txt",))
    files = ReferenceFiles(tmp_path, tmp_path / "work", LIMITS)
    found = held_out_references(version, section, Project(tmp_path), files)
    assert {one.name: one.version.manifest.rows for one in found} == {url: 2, "test.txt": 1}


@pytest.mark.slow
def test_the_held_out_rows_of_the_data_set_to_train_on_are_the_default(project: Path) -> None:
    def train_on(name: str) -> None:
        text = f'[project]\nname = "p"\n[data]\ndataset = "{name}"\nvalidation_fraction = 0.5\ntest_fraction = 0.4\n'
        (project / "aifx.toml").write_text(text)

    catalog = open_catalog(str(project / "datasets"))
    nine = " ".join(f"nine{number}" for number in range(30))
    other = texts_version(catalog, numbered([f"{number} {nine}" for number in range(20)]), 12, "other")
    train_on("other")
    against, rows = compared(project)
    (held_out,) = against
    assert other.reference in held_out
    assert rows == ["0123456789ab-8"]
    split = execute(Split((other,), 0.3, 0.3, None), "other", catalog, LIMITS).version
    assert compared(project) == (
        {split.reference: sum(split.manifest.facts[one] for one in ("validation", "test"))},
        rows,
    )
    train_on("corpus")
    assert "data.dataset" in refusal(project)
    assert "aifx data split corpus" in refusal(project)


@pytest.mark.slow
def test_a_version_holds_no_path_of_a_machine(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    parent, versions = open_catalog(str(project / "datasets")).manifest("corpus").reference, set()
    for _ in range(2):
        test = tmp_path_factory.mktemp("elsewhere") / "benchmark.txt"
        test.write_text((project / "test.txt").read_text())
        done = aifx(project, "decontaminate", parent, "--against", str(test), "--drop", "--json")
        versions.add(json.loads(done.stdout)["reference"])
    assert len(versions) == 1
    assert open_catalog(str(project / "datasets")).manifest("corpus").dropped_by == {"overlaps benchmark.txt": 1}


def test_a_damaged_test_is_no_empty_test(project: Path) -> None:
    whole = gzip.compress((project / "test.txt").read_bytes())
    (project / "test.txt.gz").write_bytes(whole[: len(whole) // 2])
    done = aifx(project, "decontaminate", "corpus", "--against", "test.txt.gz")
    assert done.returncode == 2
    assert "--against test.txt.gz" in done.stderr


@pytest.mark.representative("decontamination")
def test_rows_of_the_own_test_split_are_the_default(tmp_path: Path) -> None:
    """Only training rows are compared and dropped."""
    shared = " ".join(f"shared{number}" for number in range(15))
    texts = [f"{text} {shared}" for text in some_texts(40, 9, vocabulary=4000, longest=100)]
    catalog = open_catalog(str(tmp_path / "datasets"))
    version = texts_version(catalog, numbered(texts), 15, "corpus")
    split = execute(Split((version,), 0.1, 0.1, 0.9), "corpus", catalog, LIMITS).version
    training = [row[ROW] for row in rows_of(split.shards) if row[SPLIT] == "train"]
    done = aifx(tmp_path, "decontaminate", "corpus", "--root", "datasets", "--drop", "--json")
    assert json.loads(done.stdout)["rows"] == 40 - len(training) > 0
    dropped = rows_of(catalog.open("corpus").dropped)
    assert [row[ROW] for row in dropped] == training
    assert {row["rule"] for row in dropped} == {"overlaps corpus"}
    assert {row["twin"] for row in dropped} <= {row for row, _ in numbered(texts)} - set(training)


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("corpus", "--against", "missing.txt"), "missing.txt cannot be read"),
        (("corpus", "--against", "table"), "table@"),
        (("table", "--against", "corpus"), "holds text, and table@"),
        (("chats", "--against", "test.txt"), "decontaminate is for texts"),
        (("nothing",), "no data set 'nothing'"),
        (("corpus", "--against", "programs"), "programs cannot be compared with"),
    ],
)
def test_usage(project: Path, args: tuple[str, ...], what: str) -> None:
    for name, kind, column in (("table", "table", "a"), ("chats", "chat", "chat")):
        rows = pa.table({ROW: ["0123456789ab-0"], column: ["{}"]})
        execute(Made((), (rows,), kind), name, open_catalog(str(project / "datasets")), LIMITS)
    (project / "programs").mkdir()
    (project / "programs" / "run.bin").write_bytes(b"\x00")
    done = aifx(project, "decontaminate", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr
