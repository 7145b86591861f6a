"""`aifx data add` as a command."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import inprocess
import pytest
from adding import add, environ_of, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aifx.curation import adding as adding_module


def run(folder: Path, *args: str) -> Any:
    environ = environ_of(folder)
    return inprocess.run(["data", "add", *args, "--root", "datasets"], folder, environ)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text")
    (tmp_path / "texts" / "b.md").write_text("# b")
    (tmp_path / "texts" / "c.pdf").write_text("%PDF")
    (tmp_path / "d.jsonl").write_text('{"body": "one"}\n{"body": 2}\nnot JSON\n')
    return tmp_path


def test_rows_of_a_folder(folder: Path) -> None:
    done = run(folder, "corpus", "texts", "--license", "cc-by-4.0 or mit", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["files_read"], found["is_new"], found["is_accepted"]) == (2, 2, True, True)
    assert "texts/c.pdf" in done.stderr
    again = run(folder, "corpus", "texts/*.md", "--license", "CC-BY-4.0 OR MIT")
    assert (again.returncode, "1 unchanged" in again.stdout) == (0, True), again.stdout + again.stderr


def test_too_many_bad_rows(folder: Path) -> None:
    command = ["corpus", "d.jsonl", "--license", "unknown", "--text-field", "body"]
    refused = run(folder, *command)
    assert refused.returncode == 1
    assert "d.jsonl:2: " in refused.stdout
    assert "d.jsonl:3: not JSON" in refused.stdout
    assert "2 of 3 rows" in refused.stderr
    assert "--max-bad 0.01" in refused.stderr
    assert not (folder / "datasets" / "corpus" / "latest").exists()
    for limit in ("2", "0.9"):
        accepted = run(folder, *command, "--max-bad", limit, "--json")
        assert accepted.returncode == 0, accepted.stderr
        found = json.loads(accepted.stdout)
        assert (found["rows"], found["quarantined"], found["is_new"]) == (1, 2, False)
    assert (folder / "datasets" / "corpus" / "latest").exists()


def test_a_damaged_file(folder: Path) -> None:
    (folder / "e.txt.gz").write_bytes(gzip.compress(b"text " * 1000)[:-9])
    refused = run(folder, "corpus", "e.txt.gz", "texts", "--license", "MIT", "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["bad_rows"][0]["source"] == "e.txt.gz"
    assert "--allow-damaged" in refused.stderr
    assert run(folder, "corpus", "e.txt.gz", "texts", "--license", "MIT", "--allow-damaged").returncode == 0


def test_a_dry_run(folder: Path) -> None:
    done = run(folder, "corpus", "texts", "--license", "MIT", "--dry-run", "--json")
    found = json.loads(done.stdout)
    assert [(file["name"], file["format"], file["size_bytes"]) for file in found["files"]] == [
        ("texts/a.txt", "text", 6),
        ("texts/b.md", "text", 3),
    ]
    assert (found["kind"], found["left_out"]) == ("text", ["texts/c.pdf"])
    assert not (folder / "datasets").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["corpus", "texts"], "license"),
        (["corpus", "texts", "--license", "MITT"], "hint: --license MIT"),
        (["corpus", "texts", "--license", "Apache-2 AND MIT"], "--license 'Apache-2.0 AND MIT'"),
        (["corpus", "texts", "--license", "MIT AND"], "not an SPDX expression"),
        (["../corpus", "texts", "--license", "MIT"], "cannot name a data set"),
        (["corpus", "nothing", "--license", "MIT"], "nothing"),
        (["corpus", "texts/c.pdf", "--license", "MIT"], "has no reader"),
        (["corpus", "texts", "--license", "MIT", "--encoding", "utf-9"], "utf-9"),
        (["corpus", "texts", "--license", "MIT", "--kind", "table"], "nothing to add"),
        (["corpus", "texts", "d.jsonl", "--license", "MIT"], "hint: --text-field body"),
        (["corpus", "texts", "--license", "MIT", "--memory", "1MB"], "--memory"),
    ],
)
def test_mistakes(folder: Path, args: list[str], message: str) -> None:
    done = run(folder, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not list((folder / "datasets").rglob("manifest.json"))


RECORDS = st.lists(
    st.fixed_dictionaries(
        {"text": st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map("x".__add__)},
        optional={
            "n": st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
            "list": st.lists(st.integers(0, 9)),
            "inner": st.dictionaries(st.sampled_from("ab"), st.booleans() | st.none()),
        },
    ),
    min_size=1,
)


@pytest.mark.slow
@given(st.lists(RECORDS, min_size=1, max_size=4), st.randoms(), st.sampled_from([1, 200, 1 << 20]))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_order_and_shard_size_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, files: list[Any], random: Any, shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("add")
    names = [f"{index}.jsonl" for index in range(len(files))]
    for name, records in zip(names, files, strict=True):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    whole = add(folder, "whole", *names).version
    expected = sorted(json.dumps(row, sort_keys=True) for row in rows_of(whole))
    assert [row["text"] for row in rows_of(whole)] == [record["text"] for records in files for record in records]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adding_module, "PART_BYTES", shard_bytes)
        random.shuffle(names)
        for name in names:
            turns = add(folder, "turns", name).version
    assert sorted(json.dumps(row, sort_keys=True) for row in rows_of(turns)) == expected


def test_an_interrupted_read_of_a_database_is_named(folder: Path) -> None:
    """Until it is run again or its folder is deleted."""
    left = folder / "datasets" / "corpus" / ".query-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "parts.json").write_text('{"source": "postgresql://db/shop?query=264dd04a4d72", "parts": []}')
    done = run(folder, "corpus", "texts", "--license", "MIT")
    assert "postgresql://db/shop?query=264dd04a4d72" in done.stderr
    assert str(left) in done.stderr
    (left / "parts.json").unlink()
    again = run(folder, "corpus", "texts", "--license", "MIT")
    assert (again.returncode, str(left) in again.stderr) == (0, True)
