"""A name that another process lets mean another version, after a command has read it and before it holds the set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aifx
from aifx.core.files import FolderBusy, holding
from aifx.verbs import catalogs, data_add

PLACE: dict[str, Any] = {"root": "datasets", "workers": 1}


def add(name: str) -> str:
    return aifx.data_add("corpus", f"{name}.jsonl", license="MIT", **PLACE).reference


def texts() -> set[str]:
    return {text for (text,) in aifx.data_query("corpus", "SELECT text FROM data", root="datasets").rows}


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        Path(f"{name}.jsonl").write_text(json.dumps({"text": f"text {name}"}) + "\n")
    return add("a")


def before(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, act: Callable[[], object]) -> None:
    """Let `act` happen once, just before a function is called."""
    real = getattr(place, name)

    def late(*given: Any, **options: Any) -> Any:
        monkeypatch.setattr(place, name, real)
        act()
        return real(*given, **options)

    monkeypatch.setattr(place, name, late)


def test_rows_that_another_command_added_meanwhile_are_not_lost(added: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, data_add, "run_add", lambda: add("b"))
    with pytest.raises(FolderBusy, match="corpus has changed since this command began"):
        add("c")
    assert texts() == {"text a", "text b"}
    add("c")
    assert texts() == {"text a", "text b", "text c"}
    before(monkeypatch, data_add, "run_add", lambda: aifx.data_dedupe("corpus", **PLACE))
    with pytest.raises(FolderBusy, match="corpus has changed"):
        add("c")  # nothing is new, and the name would mean the version before `dedupe`


def test_a_step_does_not_undo_what_happened_meanwhile(added: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, catalogs.StepPlace, "execute", lambda: add("b"))
    with pytest.raises(FolderBusy, match="corpus has changed"):
        aifx.data_dedupe("corpus", **PLACE)
    aifx.data_dedupe(added, **PLACE)  # a version that is named, in place of all others
    assert texts() == {"text a"}


def test_an_equal_command_may_have_been_faster(added: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, catalogs.StepPlace, "execute", lambda: aifx.data_dedupe("corpus", **PLACE))
    assert not aifx.data_dedupe("corpus", **PLACE).is_new


def test_sketches_of_a_step_that_runs_are_not_deleted(added: str) -> None:
    aifx.data_dedupe("corpus", **PLACE)
    sketches = Path("datasets/corpus/sketches")
    with holding(sketches.parent, "data set corpus", "makes a version of it"):
        with pytest.raises(FolderBusy):
            aifx.data_dedupe("corpus", near=0.8, rebuild_sketches=True, **PLACE)
        assert sketches.is_dir()
