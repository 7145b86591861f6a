"""A data set whose earlier versions `aifx data erase --purge` deleted can be extended and made again."""

from __future__ import annotations

from pathlib import Path

import pytest

import aifx
from aifx.core.errors import DataError


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


def test_files_are_added_to_the_rows_that_are_left(purged: Path) -> None:
    (purged / "letters" / "c.txt").write_text("Dear Bob, goodbye.")
    assert not aifx.data_add("letters", "letters/a.txt", license="MIT").is_new
    aifx.data_add("letters", "letters", license="MIT")
    assert texts() == ["Dear Ann, thank you.", "Dear Bob, goodbye."]
    assert aifx.data_dedupe("letters").rows == 2


def test_a_recipe_makes_it_again_without_the_rows(purged: Path) -> None:
    (step, _) = aifx.data_make_plan().data_sets[0].steps
    assert step.why == "a version that the current one was made from is gone"
    with pytest.raises(DataError, match="would bring erased rows back"):
        aifx.data_make()
    assert texts() == ["Dear Ann, thank you."]
    (purged / "letters" / "a.txt").unlink()
    aifx.data_make()
    assert texts() == ["Dear Ann, thank you."]
