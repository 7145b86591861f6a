"""The index of runs: a list with it is the list without it, whatever changed, was cut or is held."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_runs_commands import make_run

from aifx.core.files import UnsafeFile
from aifx.core.project import Project, RunDirectory, cache_path
from aifx.runs import index
from aifx.runs.index import list_runs
from aifx.runs.lock import hold_run
from aifx.runs.manage import change_tags
from aifx.runs.records import Ledger, MetricsWriter
from aifx.runs.status import RunStatus, run_status

read: list[str] = []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("indexed") / "project"
    root.mkdir()
    (root / "aifx.toml").write_text("")
    for seed, name in enumerate(("one", "two", "three")):
        make_run(Project(root), name, seed)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Three runs with an index. `read` has the runs that a later list has read."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setattr(index, "SETTLED_NS", -(10**18))  # the files are as old as the test

    def counted(run: RunDirectory) -> RunStatus:
        read.append(run.name)
        return run_status(run)

    monkeypatch.setattr(index, "run_status", counted)
    found = Project(tmp_path / "project")
    listed(found)
    read.clear()
    return found


def listed(project: Project) -> list[RunStatus]:
    errors: list[Exception] = []
    found = list_runs(project, None, errors.append).runs
    assert [(one.run, one) for one in found] == [
        (run.name, run_status(run)) for run in project.runs() if not run.events.is_symlink()
    ]
    assert len(errors) == sum(isinstance(one, UnsafeFile) for one in errors)
    return found


def write_events(run: RunDirectory) -> None:
    Ledger(run.events).write("resume", step=40)


def write_metrics(run: RunDirectory) -> None:
    MetricsWriter(run.metrics, 40).write({"step": 41, "loss": 0.5})


def rewrite_config(run: RunDirectory) -> None:
    text = run.config.read_text()
    run.config.write_text(text.replace("num_steps = 40", "num_steps = 41"))  # of the same size


def lose_an_array(run: RunDirectory) -> None:
    max((path for path in run.checkpoints.glob("40/**/*") if path.is_file()), key=lambda p: p.stat().st_size).unlink()


def put_a_link(run: RunDirectory) -> None:
    run.events.rename(run.path / "elsewhere")
    run.events.symlink_to("elsewhere")


CHANGES: list[Callable[[RunDirectory], Any]] = [
    write_events,
    write_metrics,
    rewrite_config,
    lose_an_array,
    put_a_link,
    lambda run: change_tags(run, ["night"], []),
    lambda run: shutil.rmtree(run.checkpoints / "40"),
    lambda run: shutil.rmtree(run.checkpoints),
    lambda run: run.metrics.unlink(),
]


def test_runs_that_did_not_change_are_not_read(project: Project) -> None:
    listed(project)
    assert read == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_run_is_read_and_no_other(project: Project, change: Callable[[RunDirectory], Any]) -> None:
    change(project.run("two"))
    listed(project)
    assert read == ["two"]


def test_a_run_that_was_renamed_or_removed_is_listed_as_it_is(project: Project) -> None:
    project.run("one").path.rename(project.runs_path / "first")
    shutil.rmtree(project.run("three").path)
    assert {one.run for one in listed(project)} == {"first", "two"}
    assert read == ["first"]


def test_a_run_that_is_held_is_read_each_time(project: Project) -> None:
    with hold_run(project.run("two")):
        assert [one.run for one in listed(project) if one.alive] == ["two"]
    listed(project)
    assert not any(one.alive for one in listed(project))
    assert read == ["two", "two"]


def test_a_run_that_may_change_within_a_tick_of_the_clock_is_read_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "SETTLED_NS", 3600 * 10**9)
    change_tags(project.run("two"), ["night"], [])
    for _ in range(2):
        listed(project)
    assert read == ["two", "two"]


def test_an_index_that_was_cut_changed_or_cannot_be_written_costs_only_time(project: Project) -> None:
    (path,) = cache_path("runs").glob("*.json")
    whole = path.read_bytes()
    document = json.loads(whole)
    other = json.dumps({**document, "key": [0]}), json.dumps({**document, "runs": {"one": 3, "two": [[], {}]}})
    for data in (b"", whole[: len(whole) // 2], b"[]", *(text.encode() for text in other)):
        path.write_bytes(data)
        read.clear()
        listed(project)
        assert sorted(read) == ["one", "three", "two"]
        assert json.loads(path.read_bytes()) == document
    path.unlink()
    path.mkdir()  # as root, no permission stops a write
    listed(project)
    assert path.is_dir()


def test_calls_that_list_at_once_leave_a_whole_index(project: Project) -> None:
    (path,) = cache_path("runs").glob("*.json")
    whole = path.read_bytes()
    path.unlink()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: listed(project), range(12)))
    assert json.loads(path.read_bytes()) == json.loads(whole)
    assert os.listdir(path.parent) == [path.name]


def test_a_run_that_cannot_be_looked_at_is_listed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(run: RunDirectory) -> list[object]:
        raise PermissionError(13, "Permission denied", str(run.path))

    monkeypatch.setattr(index, "_states", refuses)
    assert [one.run for one in listed(project)] == ["one", "two", "three"]


def test_without_a_home_directory_runs_are_listed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*_: str) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(index, "cache_path", homeless)
    assert [one.run for one in listed(project)] == ["one", "two", "three"]
