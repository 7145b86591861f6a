"""`aifx data pii`: reports, masked versions and versions without rows. Values never leave the data."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import inprocess
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pii_sentences import sentences
from pyarrow import parquet
from toy_steps import Rows

from aifx.core.errors import UsageError
from aifx.curation.execution import execute
from aifx.curation.pii.finders import Detector
from aifx.curation.pii.steps import RemovePii, text_columns, unsearched_columns
from aifx.curation.step import Limits
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version

TEXTS = (
    ("Write to jane.roe@example.org or joe@example.com.", "Nothing here.", "Tel. (212) 555-0199, jane.roe@example.org"),
    ("My card is 4111 1111 1111 1111.", "Version 1.2.3.4"),
)
VALUES = ("jane.roe", "joe@", "555-0199", "4111 1111")


@pytest.fixture
def corpus(tmp_path: Path) -> Version:
    return execute(Rows((), TEXTS), "corpus", open_catalog(str(tmp_path / "datasets")), Limits(1 << 30, 1)).version


def aifx(folder: Path, *args: str) -> Any:
    environ = {**os.environ, "AIFX_CACHE_DIR": str(folder / "cache")}
    return inprocess.run(["data", "pii", *args, "--root", "datasets", "--workers", "1"], folder, environ)


def rows_of(folder: Path, reference: str) -> list[dict[str, Any]]:
    version = open_catalog(str(folder / "datasets")).open(reference)
    return [row for shard in version.shards for row in parquet.read_table(shard).to_pylist()]


def test_what_is_found_is_a_verdict(tmp_path: Path, corpus: Version) -> None:
    done = aifx(tmp_path, "corpus", "--json", "--spans", "2", "--output", "places.jsonl")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["rows"], document["rows_found"], document["made"]) == (5, 3, None)
    assert document["kinds"] == [
        {"kind": "email", "spans": 3, "rows": 2, "checks": {"format": 3},
         "shapes": ["aaaa.aaa@aaaaaaa.aaa", "aaa@aaaaaaa.aaa"]},
        {"kind": "credit_card", "spans": 1, "rows": 1, "checks": {"checksum: Luhn": 1},
         "shapes": ["0000 0000 0000 0000"]},
        {"kind": "phone", "spans": 1, "rows": 1, "checks": {"numbering plan": 1}, "shapes": ["(000) 000-0000"]},
    ]  # fmt: skip
    assert document["spans"] == [
        {"row": "s0.txt-0", "column": "text", "kind": "email", "start": 9, "end": 29, "check": "format"},
        {"row": "s0.txt-0", "column": "text", "kind": "email", "start": 33, "end": 48, "check": "format"},
    ]
    places = [json.loads(line) for line in (tmp_path / "places.jsonl").read_text().splitlines()]
    assert places[:2] == document["spans"]
    assert len(places) == 5
    assert open_catalog(str(tmp_path / "datasets")).versions("corpus") == [corpus.manifest.version]


def test_values_are_nowhere(tmp_path: Path, corpus: Version) -> None:
    before = {path: path.stat().st_size for path in filter(Path.is_file, tmp_path.rglob("*"))}
    for options in ([], ["--json"], ["--output", "places.jsonl"], ["--drop", "--json"], ["--mask"]):
        done = aifx(tmp_path, corpus.reference, *options)
        assert done.returncode == (0 if options[:1] in (["--drop"], ["--mask"]) else 1), done.stderr
        for value in VALUES:
            assert value not in done.stdout + done.stderr
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        new = path.read_bytes()[before.get(path, 0) :]
        assert not any(value.encode() in new for value in VALUES), path


def test_mask(tmp_path: Path, corpus: Version) -> None:
    document = json.loads(aifx(tmp_path, "corpus", "--mask", "--json").stdout)
    assert [row["text"] for row in rows_of(tmp_path, "corpus")] == [
        "Write to [EMAIL] or [EMAIL].",
        "Nothing here.",
        "Tel. [PHONE], [EMAIL]",
        "My card is [CREDIT_CARD].",
        "Version 1.2.3.4",
    ]
    assert document["made"]["reference"] == open_catalog(str(tmp_path / "datasets")).open("corpus").reference
    assert {kind["kind"]: (kind["spans"], kind["rows"]) for kind in document["kinds"]} == {
        "email": (3, 2), "credit_card": (1, 1), "phone": (1, 1),
    }  # fmt: skip
    done = aifx(tmp_path, "corpus")
    assert (done.returncode, "5 rows" in done.stdout) == (0, True)


def test_drop_and_kinds(tmp_path: Path, corpus: Version) -> None:
    document = json.loads(aifx(tmp_path, "corpus", "--drop", "--kinds", "phone,credit_card", "--json").stdout)
    assert document["made"]["dropped_by"] == {"pii.credit_card": 1, "pii.phone": 1}
    assert [row["_row"] for row in rows_of(tmp_path, "corpus")] == ["s0.txt-0", "s0.txt-1", "s1.txt-1"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["corpus", "--mask", "--drop"], "cannot be used together"),
        (["corpus", "--kinds", "mail"], "no kind 'mail'"),
        (["corpus", "--region", "XX"], "no region 'XX'"),
        (["corpus", "--mask", "--output", "x"], "--output cannot be used"),
        (["corpus", "--on", "slurm"], "--on slurm requires --mask or --drop"),
        (["corpse"], "no data set 'corpse'"),
    ],
)
def test_usage(tmp_path: Path, corpus: Version, options: list[str], words: str) -> None:
    done = aifx(tmp_path, *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert [line[:6] for line in done.stderr.splitlines()][::2] == ["error:", "hint: "]


def remove(corpus: Version, rows: pa.Table, action: Any) -> tuple[dict[str, str], dict[str, str]]:
    outcome = RemovePii((corpus,), Detector(), action).apply(rows, Path())
    kept = dict(zip(outcome.kept["_row"].to_pylist(), outcome.kept["text"].to_pylist(), strict=True))
    if outcome.dropped is None:
        return kept, {}
    return kept, dict(zip(outcome.dropped["_row"].to_pylist(), outcome.dropped["rule"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Version:
    root = tmp_path_factory.mktemp("pii")
    return execute(Rows((), TEXTS), "corpus", open_catalog(str(root)), Limits(1 << 30, 1)).version


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(sentences(9, 60)), max_size=8), st.randoms(use_true_random=False), st.integers(1, 5))
@pytest.mark.slow
def test_each_row_is_treated_alone(template: Version, found: list[Any], random: Any, size: int) -> None:
    """In another order and in shards of any size; and what is done is done."""
    texts = {f"r{number}": sentence.text for number, sentence in enumerate(found)}
    order = random.sample(sorted(texts), len(texts))

    def table(names: list[str], values: dict[str, str]) -> pa.Table:
        return pa.table(
            {"_row": pa.array(names, pa.string()), "text": pa.array([values[n] for n in names], pa.string())}
        )

    for action in ("mask", "drop"):
        whole = remove(template, table(sorted(texts), texts), action)
        parts = [remove(template, table(order[at : at + size], texts), action) for at in range(0, len(order), size)]
        for index in (0, 1):
            assert whole[index] == {key: value for part in parts for key, value in part[index].items()}
        again = remove(template, table(sorted(whole[0]), whole[0]), action)
        assert again == (whole[0], {})


def test_columns(corpus: Version) -> None:
    columns = {"_row": "string", "_source": "string", "text": "string", "author": "large_string", "n": "int64"}
    manifest = replace(
        corpus.manifest, columns={**columns, "turns": "list<element: string>", "meta": "struct<a: string>"}
    )
    assert text_columns(manifest) == ("text", "author")
    assert unsearched_columns(manifest) == ("turns", "meta")
    with pytest.raises(UsageError, match="no column of texts"):
        text_columns(replace(manifest, columns={"_row": "string", "image": "binary"}))
