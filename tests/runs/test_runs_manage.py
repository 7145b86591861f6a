"""`aifx runs rm`, `rename`, `tag` and `compare`, on run directories made by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from published_schemas import check_answer

from aifx.commands.main import run
from aifx.core.project import Project, RunDirectory
from aifx.runs.comparison import compare_runs
from aifx.runs.lock import hold_run


class Here:
    """Commands in a project, in this process."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.project, self._capsys = Project(root), capsys

    def make(self, name: str, losses: dict[int, float], validation: dict[int, float] | None = None) -> RunDirectory:
        directory = self.project.run(name)
        (directory.path / "eval").mkdir(parents=True)
        directory.config.write_text(f"[train]\nnum_steps = {max(losses, default=1)}\n")
        lines = []
        for step, loss in losses.items():
            record: dict[str, Any] = {"step": step, "loss": loss, "unit": "tokens", "units_per_s": 1.0}
            if validation and step in validation:
                record["validation"] = {"loss": validation[step], "accuracy": 1 - validation[step] / 10}
            lines.append(json.dumps(record) + "\n")
        directory.metrics.write_text("".join(lines))
        return directory

    def __call__(self, *args: str, code: int = 0) -> tuple[str, str]:
        self._capsys.readouterr()
        ended = run(["runs", *args])
        out, err = self._capsys.readouterr()
        assert ended == code, err
        check_answer(["runs", *args], out)
        return out, err

    def names(self) -> set[str]:
        return {path.name for path in self.project.runs_path.iterdir()}


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "aifx.toml").write_text("")
    return Here(tmp_path, capsys)


def test_rm_deletes_what_was_named_and_nothing_else(here: Here) -> None:
    for name in ("a", "b", "c"):
        here.make(name, {1: 1.0})
    assert "--yes" in here("rm", "a", code=2)[1], "without a terminal nobody can be asked"
    assert "did you mean" in here("rm", "a", "bb", "--yes", code=2)[1]
    assert "would delete a" in here("rm", "a", "--dry-run")[0]
    assert here.names() == {"a", "b", "c"}
    document = json.loads(here("rm", "a", "b", "a", "--yes", "--json")[0])
    assert [entry["run"] for entry in document["removed"]] == ["a", "b"]
    assert here.names() == {"c"}


def test_rm_refuses_a_run_that_is_trained_and_a_link(here: Here, tmp_path: Path) -> None:
    held = here.make("held", {1: 1.0})
    kept = here.make("kept", {1: 1.0})
    elsewhere = tmp_path / "elsewhere"
    kept.path.rename(elsewhere)
    kept.path.symlink_to(elsewhere)
    with hold_run(held):
        assert "is being trained" in here("rm", "held", "--yes", code=2)[1]
        here("rename", "held", "new", code=2)
    here("rm", "kept", "--yes", code=2)
    assert (elsewhere / "config.toml").is_file()
    assert here.names() == {"held", "kept"}


def test_an_interrupted_removal_leaves_no_run_and_the_next_one_ends_it(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.make("a", {1: 1.0})
    here.make("b", {1: 1.0})

    def interrupt(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", interrupt)
        here("rm", "a", "--yes", code=130)
    assert [r["run"] for r in json.loads(here("ls", "--json")[0])["runs"]] == ["b"]
    here.make("a", {1: 1.0})
    here("rm", "a", "--yes")
    assert here.names() == {"b"}


def test_rename_keeps_the_content_and_the_place_among_the_runs(here: Here) -> None:
    old = here.make("old", {1: 1.0})
    here.make("newest", {1: 1.0})
    (old.eval / "1.json").write_text(json.dumps({"run": "old", "step": 1, "splits": {}}))
    for file in (old.config, old.metrics):
        os.utime(file, (1e9, 1e9))
    here("rename", "old", "newest", code=2)
    here("rename", "old", "../out", code=2)
    document = json.loads(here("rename", "old", "first", "--json")[0])
    assert (document["run"], document["renamed_from"]) == ("first", "old")
    assert [r.name for r in here.project.runs()] == ["first", "newest"], "a new name is not new work"
    assert json.loads((here.project.run("first").eval / "1.json").read_text())["run"] == "first"


def test_tags(here: Here) -> None:
    here.make("a", {1: 1.0})
    here.make("b", {1: 1.0})
    here("tag", "a", "paper", "baseline")
    assert here("tag", "a")[0] == "a: baseline, paper\n"
    here("tag", "a", "--remove", "paper")
    runs = json.loads(here("ls", "--tag", "baseline", "--json")[0])["runs"]
    assert [(r["run"], r["tags"]) for r in runs] == [("a", ["baseline"])]
    assert "tags" in here("ls")[0].splitlines()[0]
    here("tag", "a", "two words", code=2)
    assert "its tags: baseline" in here("tag", "a", "--remove", "paper", code=2)[1]
    here.project.run("b").tags.write_text('{"tags": 3}')
    assert here("tag", "b")[0] == "b: no tag\n"


def test_compare_handles_runs_of_unequal_length(here: Here) -> None:
    noisy = {s: 5 - s / 100 + (0.5 if s % 2 else -0.5) for s in range(1, 201)}
    short = here.make("short", {s: loss for s, loss in noisy.items() if s <= 100}, {50: 4.6, 100: 4.2})
    long = here.make("long", {s: loss - 0.1 for s, loss in noisy.items()}, {50: 4.5, 100: 4.1, 150: 3.0, 200: 3.5})
    found = compare_runs(short, long)
    assert (found.steps, found.common_steps) == ((100, 200), 100)
    assert (found.best_validation_loss, found.best_step) == ((4.2, 3.0), (100, 150))
    assert found.best_common_validation_loss == (4.2, 4.1)
    assert found.last_validation["loss"] == (4.2, 3.5)
    last = next(row for row in found.rows if row.step == 100)
    assert last.smoothed_loss[0] == pytest.approx(sum(noisy[s] for s in range(96, 101)) / 5)
    assert last.smoothed_loss[1] == pytest.approx(last.smoothed_loss[0] - 0.1)
    assert last.validation_loss == (4.2, 4.1)
    assert [(row.step, row.smoothed_loss[0]) for row in found.rows if row.step > 100] == [(150, None), (200, None)]
    text = here("compare", "short", "long")[0]
    for words in ("last validation loss", "best validation loss to step 100", "loss at step 100", "mean of the last 5"):
        assert words in text
    document = json.loads(here("compare", "short", "long", "--json")[0])
    assert document["best_step"] == [100, 150]
    assert document["rows"][-1]["smoothed_loss"][0] is None


def test_compare_of_runs_that_log_at_different_steps_or_not_at_all(here: Here) -> None:
    odd = here.make("odd", dict.fromkeys(range(1, 100, 2), 1.0))
    even = here.make("even", dict.fromkeys(range(2, 101, 2), 2.0))
    rows = compare_runs(odd, even).rows
    assert rows
    assert all(row.smoothed_loss == (1.0, 2.0) for row in rows if 5 < row.step < 99)
    empty = here.make("empty", {})
    assert compare_runs(odd, empty).rows == []
    assert "steps" in here("compare", "odd", "empty")[0]
