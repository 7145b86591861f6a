"""A data set whose earlier versions `aifx data erase --purge` deleted can be extended and made again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import aifx


@pytest.fixture
def purged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "aifx.toml").write_text('[datasets]\nroot = "datasets"\n')
    step = '{ add = { sources = ["letters"], license = "MIT" } }, { dedupe = {} }'
    (tmp_path / "recipe.toml").write_text(f"[letters]\nsteps = [{step}]\n")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear Mrs Smith, the parcel came.")
    (tmp_path / "letters" / "b.txt").write_text("Dear Ann, thank you.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    aifx.data_make()
    aifx.data_erase("letters", "contains(text, 'Smith')", purge=True)
    assert len(aifx.data_ls("letters").versions) == 1
    return tmp_path


def texts() -> list[str]:
    return sorted(row[0] for row in aifx.data_query("letters", "SELECT text FROM data").rows)


@pytest.mark.slow
def test_files_are_added_to_the_rows_that_are_left(purged: Path) -> None:
    (purged / "letters" / "c.txt").write_text("Dear Bob, goodbye.")
    assert not aifx.data_add("letters", "letters/a.txt", license="MIT").is_new
    aifx.data_add("letters", "letters", license="MIT")
    assert texts() == ["Dear Ann, thank you.", "Dear Bob, goodbye."]
    assert aifx.data_dedupe("letters").rows == 2


def files_with(folder: Path, text: str) -> list[str]:
    """The files that have a text, also in the values of Parquet, which are compressed."""

    def content(path: Path) -> bytes:
        data = path.read_bytes()
        return data + repr(pq.read_table(path, partitioning=None).to_pylist()).encode() if is_parquet(path) else data

    def is_parquet(path: Path) -> bool:
        return path.suffix == ".parquet"

    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in content(path)]


def test_a_recipe_makes_it_again_without_the_rows(purged: Path, caplog: pytest.LogCaptureFixture) -> None:
    (step, _) = aifx.data_make_plan().data_sets[0].steps
    assert step.why == "a version that the current one was made from is gone"
    assert files_with(purged / "letters", "Smith")
    assert files_with(purged / "datasets", "Ann")
    caplog.set_level("INFO", "aifx")
    (made,) = aifx.data_make().data_sets
    assert texts() == ["Dear Ann, thank you."]
    assert any("erased them: 1 row" in message for message in caplog.messages)
    assert aifx.data_lineage(made.steps[0].reference).versions[0].dropped_by == {"erased": 1}
    assert files_with(purged / "datasets", "Smith") == []
    (again,) = aifx.data_make().data_sets
    assert (again.is_new, [step.is_new for step in again.steps]) == (False, [False, False])


@pytest.mark.slow
def test_erased_rows_are_known_in_files_of_other_names_and_contents(purged: Path) -> None:
    letters = purged / "letters"
    (letters / "a.txt").rename(letters / "moved.txt")
    lines = [{"text": "Dear Mrs Smith, the parcel came."}, {"text": "Dear Bob, goodbye."}]
    (letters / "more.jsonl").write_text("\n".join(map(json.dumps, lines)))
    aifx.data_add("letters", "letters", license="MIT")
    assert texts() == ["Dear Ann, thank you.", "Dear Bob, goodbye."]
    (letters / "more.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"text": "Dear Eve, hello."}])))
    aifx.data_make()
    assert texts() == ["Dear Ann, thank you.", "Dear Bob, goodbye.", "Dear Eve, hello."]
    assert files_with(purged / "datasets", "Smith") == []


@pytest.mark.slow
def test_steps_in_one_pass_write_no_erased_row(purged: Path) -> None:
    recipe = purged / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("{ dedupe = {} }", "{ dedupe = {} }, { pii = { mask = true } }"))
    (made,) = aifx.data_make().data_sets
    assert [step.step for step in made.steps] == ["add", "dedupe", "pii"]
    assert made.steps[1].reference == made.steps[2].reference
    assert texts() == ["Dear Ann, thank you."]
    assert files_with(purged / "datasets", "Smith") == []


@pytest.mark.slow
def test_a_purge_records_copies_that_earlier_steps_dropped(purged: Path) -> None:
    """The latest version has one of two equal rows: both are erased."""
    for name in ("c.txt", "d.txt"):
        (purged / "letters" / name).write_text("Dear Mr Jones, good morning.")
    aifx.data_make()
    aifx.data_erase("letters", "contains(text, 'Jones')", purge=True)
    aifx.data_make()
    assert texts() == ["Dear Ann, thank you."]
    assert files_with(purged / "datasets", "Jones") == []


def test_a_content_that_another_row_keeps_is_not_erased(purged: Path) -> None:
    (purged / "letters" / "copy.txt").write_text("Dear Ann, thank you.")
    aifx.data_add("letters", "letters", license="MIT")
    aifx.data_erase("letters", "_source LIKE '%copy.txt'", purge=True)
    (purged / "letters" / "b.txt").rename(purged / "letters" / "e.txt")
    aifx.data_make()
    assert texts() == ["Dear Ann, thank you."]


@pytest.mark.slow
def test_rows_of_a_table_are_known_when_its_columns_change(purged: Path) -> None:
    table = purged / "calls.csv"
    table.write_text("name,minutes\nJones,3\nAnn,4\n")
    aifx.data_add("calls", "calls.csv", license="MIT", kind="table")
    aifx.data_erase("calls", "name = 'Jones'", purge=True)
    table.write_text("name,minutes,note\nEve,2.5,new\nJones,3,\nAnn,4,\n")
    aifx.data_add("calls", "calls.csv", license="MIT", kind="table")
    assert sorted(aifx.data_query("calls", "SELECT name FROM data").rows) == [("Ann",), ("Eve",)]
    assert files_with(purged / "datasets", "Jones") == []
