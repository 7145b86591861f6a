"""Attacks by a run that was copied from somebody else: links and FIFOs in place of the files that training writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aifx.checkpoint import folders
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import TEMPORARY_SUFFIX, Damaged, step_directories
from aifx.commands.main import run as run_command
from aifx.config.sections import CheckpointSection
from aifx.core.files import UnsafeFile
from aifx.core.project import RunDirectory
from aifx.evaluation.held_out import Report, write_report
from aifx.runs.lock import hold_run, holder, is_held
from aifx.runs.provenance import read_provenance
from aifx.runs.reading import MetricsTail, read_evaluations
from aifx.runs.status import read_settings, run_status
from aifx.training.hooks.run_files import LogFile

PRECIOUS = "what the link points to\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "runs/copied").mkdir(parents=True)
    return RunDirectory(tmp_path / "runs/copied")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that the run's links point to, with a file in it; neither may change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_text(PRECIOUS)
    return tmp_path / "outside"


def untouched(outside: Path) -> bool:
    return {p.name: p.read_text() for p in outside.iterdir()} == {"precious": PRECIOUS}


def test_the_log_is_not_written_through_a_link(run: RunDirectory, outside: Path) -> None:
    run.log.symlink_to(outside / "precious")
    with pytest.raises(UnsafeFile, match=r"train\.log is a link"):
        LogFile(run)
    assert untouched(outside)


def test_the_lock_is_not_written_through_a_link(run: RunDirectory, outside: Path) -> None:
    run.lock.symlink_to(outside / "precious")
    with pytest.raises(UnsafeFile, match="lock is a link"), hold_run(run):
        pass
    assert untouched(outside)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("lock", is_held),
        ("lock", holder),
        ("events.jsonl", run_status),
        ("metrics.jsonl", run_status),
        ("metrics.jsonl", lambda run: MetricsTail(run.metrics).read()),
        ("provenance.json", read_provenance),
        ("config.toml", read_settings),
        ("eval/10.json", read_evaluations),
    ],
)
def test_a_fifo_in_a_run_is_an_error_and_does_not_hang(
    run: RunDirectory, name: str, read: Callable[[RunDirectory], object]
) -> None:
    (run.path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(run.path / name)
    with pytest.raises(UnsafeFile, match=f"{name} is a FIFO"):
        read(run)


def test_a_report_is_not_written_into_a_linked_folder(run: RunDirectory, outside: Path) -> None:
    run.eval.symlink_to(outside)
    report = Report("copied", 10, "test", "none", {"loss": 1.0}, ())
    with pytest.raises(UnsafeFile, match="eval is a link"):
        write_report(run, report)
    assert untouched(outside)


@pytest.mark.parametrize(
    "act",
    [
        step_directories,
        folders.clean,
        lambda path: folders.prepare(folders.temporary_place(path, 20)),
        lambda path: Checkpoints(path, CheckpointSection()).latest_good({}),
    ],
)
def test_nothing_happens_below_linked_checkpoints(
    run: RunDirectory, tmp_path: Path, act: Callable[[Path], object]
) -> None:
    outside = tmp_path / "elsewhere"
    (outside / "10").mkdir(parents=True)
    (outside / f"30{TEMPORARY_SUFFIX}/replaced").mkdir(parents=True)
    run.checkpoints.symlink_to(outside)
    with pytest.raises(UnsafeFile, match="checkpoints is a link"):
        act(run.checkpoints)
    assert sorted(p.name for p in outside.iterdir()) == ["10", f"30{TEMPORARY_SUFFIX}"]


def test_a_linked_temporary_folder_is_unlinked_and_not_emptied(run: RunDirectory, outside: Path) -> None:
    run.checkpoints.mkdir()
    (outside / "replaced").mkdir()
    for name in (f"20{TEMPORARY_SUFFIX}", f"30{TEMPORARY_SUFFIX}"):
        (run.checkpoints / name).symlink_to(outside)
    folders.prepare(folders.temporary_place(run.checkpoints, 20))
    folders.clean(run.checkpoints)
    assert list(run.checkpoints.iterdir()) == []
    assert sorted(p.name for p in outside.iterdir()) == ["precious", "replaced"]


def test_a_checkpoint_with_a_fifo_is_damaged_and_does_not_hang(run: RunDirectory) -> None:
    checkpoints = Checkpoints(run.checkpoints, CheckpointSection())
    checkpoints.save(10, {"params": {"w": np.arange(4.0)}}, host={})
    checkpoints.wait()
    assert checkpoints.verify(10).damaged == ()
    largest = max((p for p in (run.checkpoints / "10/state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.unlink()
    os.mkfifo(largest)
    with pytest.raises(Damaged) as raised:
        checkpoints.verify(10)
    assert "is a FIFO" in raised.value.why


def test_a_linked_manifest_is_damage(run: RunDirectory, outside: Path) -> None:
    checkpoints = Checkpoints(run.checkpoints, CheckpointSection())
    checkpoints.save(10, {"params": {"w": np.arange(4.0)}}, host={})
    checkpoints.wait()
    manifest = run.checkpoints / "10/manifest.json"
    manifest.rename(outside / "manifest.json")
    manifest.symlink_to(outside / "manifest.json")
    (found,) = checkpoints.infos()
    assert "is a link" in (found.damaged or "")


FILES = ["lock", "config.toml", "provenance.json", "events.jsonl", "metrics.jsonl", "train.log", "kernels.json"]
FOLDERS = ["checkpoints", "eval", "assets", "trackers", "profile"]


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_training_refuses_a_run_with_a_link(
    tmp_path: Path,
    run: RunDirectory,
    outside: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "aifx.toml").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("the cat sat on the mat\n" * 50)
    (run.path / name).symlink_to(outside / "precious" if name in FILES else outside)
    monkeypatch.chdir(tmp_path)
    assert run_command(["train", "--run", "copied", "--set", "data.train=['data/a.txt']"]) == 2
    assert f"{name} is a link to {outside}" in capsys.readouterr().err
    assert untouched(outside)


def test_one_bad_run_does_not_hide_the_others(
    tmp_path: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "aifx.toml").write_text("")
    (tmp_path / "runs/good").mkdir()
    for name in ("copied", "good"):
        (tmp_path / "runs" / name / "config.toml").write_text("")
    os.mkfifo(run.events)
    monkeypatch.chdir(tmp_path)
    assert run_command(["runs", "ls", "--json"]) == 0
    said = capsys.readouterr()
    assert [r["run"] for r in json.loads(said.out)["runs"]] == ["good"]
    assert "events.jsonl is a FIFO" in said.err
