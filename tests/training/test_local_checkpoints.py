"""Checkpoints on a disk of the host: a killed run goes on from them bit for bit, and can do without them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stopping import StopAt

from aifx.checkpoint.folders import local_folder
from aifx.checkpoint.manifest import read_checkpoint, step_directories
from aifx.core.errors import CheckpointError, ConfigError
from aifx.core.project import Project


class Killed(BaseException):
    """The process ends where it stands, as far as its files tell."""


class KillAt(StopAt):
    def on_record(self, record: Any) -> None:
        if record.step == self.step:
            raise Killed


def settings(local_dir: Path) -> list[str]:
    return [f"checkpoint.local_dir={local_dir}", "checkpoint.local_every=3", "checkpoint.asynchronous=false"]


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory, whole) -> Any:
    """A project whose run "main" was killed at step 11, after 4 and 8 on its disk and 6 and 9 on the local one."""
    root = tmp_path_factory.mktemp("killed")
    tiny = type(whole.tiny)(Project(root / "project"))
    shutil.copytree(whole.tiny.root, tiny.root, ignore=shutil.ignore_patterns("runs"))
    (root / "local").mkdir()
    with pytest.raises(Killed):
        tiny.train(*settings(root / "local"), hooks=[KillAt(11)])
    return tiny


@pytest.fixture
def killed(killed_once, tmp_path: Path) -> Any:
    """The project of `killed_once`, in its place again after the test: local checkpoints hang on the run's place."""
    root = killed_once.root.parent
    kept = Path(shutil.copytree(root, tmp_path / "kept"))
    yield killed_once
    shutil.rmtree(root)
    shutil.copytree(kept, root)


def local_dir(tiny) -> Path:
    return tiny.root.parent / "local"


def resumed(tiny, whole, at: int, again: list[str] | None = None) -> None:
    """The run goes on from step `at`, and ends as the run that was not killed."""
    result = tiny.train(*(again or settings(local_dir(tiny))))
    assert result.resumed_from == at
    assert result.state_digest == whole.result.state_digest
    assert result.best_step == whole.result.best_step
    assert tiny.records() == whole.records


def test_a_killed_run_goes_on_from_the_local_checkpoint(killed, whole) -> None:
    (folder,) = local_dir(killed).iterdir()
    assert sorted(step_directories(folder)) == [6, 9]
    assert folder.stat().st_mode & 0o077 == 0
    # The first one is on the run's disk.
    assert sorted(step_directories(killed.run().checkpoints)) == [4, 8]
    assert [e["step"] for e in killed.events() if e["event"] == "checkpoint"] == [3, 4, 8]
    assert [e["step"] for e in killed.events() if e["event"] == "local_checkpoint"] == [6, 9]
    resumed(killed, whole, 9)
    assert [e["step"] for e in killed.events() if e["event"] == "resume"] == [9]
    assert list(local_dir(killed).iterdir()) == []  # the run has ended


def damage(folder: Path) -> None:
    for path in (folder / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)


def test_a_damaged_one_gives_way_to_that_of_the_run(killed, whole, logged: list[str]) -> None:
    (folder,) = local_dir(killed).iterdir()
    damage(folder / "9")
    resumed(killed, whole, 8)
    assert any("checkpoint of step 9" in line for line in logged)


def test_it_stands_in_for_damaged_ones_of_the_run(killed, whole) -> None:
    (folder,) = local_dir(killed).iterdir()
    shutil.rmtree(folder / "9")
    shutil.rmtree(killed.run().checkpoints / "8" / "state")
    resumed(killed, whole, 6)


def test_a_disk_that_is_gone_is_done_without(killed, whole, logged: list[str]) -> None:
    shutil.rmtree(local_dir(killed))
    resumed(killed, whole, 8)
    assert sum("no local checkpoint" in line for line in logged) == 1
    assert not local_dir(killed).exists()


def test_those_of_another_run_are_not_taken(killed, whole, logged: list[str]) -> None:
    (folder,) = local_dir(killed).iterdir()
    for path in folder.glob("*/manifest.json"):
        artifact, manifest = read_checkpoint(path.parent)
        other = replace(manifest, run={**manifest.run, "id": "0" * 32})
        path.write_bytes(other.artifact(artifact.files).encode())
    resumed(killed, whole, 8)
    assert any("is of another run" in line for line in logged)


def test_each_run_and_each_copy_of_one_has_its_own_folder(tmp_path: Path) -> None:
    runs = [(tmp_path / name, digit * 32) for name in ("main", "copy") for digit in "01"]
    assert len({local_folder("/dev/shm", *run) for run in runs}) == 4
    with pytest.raises(CheckpointError, match="id"):
        local_folder("/dev/shm", tmp_path, "../../home")


def test_a_full_disk_is_done_without(tiny, whole, tmp_path: Path, monkeypatch: Any, logged: list[str]) -> None:
    def check(directory: Path, needed: int) -> None:
        if directory.is_relative_to(tmp_path / "local"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    monkeypatch.setattr("aifx.checkpoint.checkpoints.check_room", check)
    (tmp_path / "local").mkdir()
    result = tiny.train(*settings(tmp_path / "local"))
    assert result.state_digest == whole.result.state_digest
    assert tiny.records() == whole.records
    assert sum("no local checkpoint" in line for line in logged) == 1
    assert not any(e["event"] == "local_checkpoint" for e in tiny.events())


def test_a_run_goes_back_to_a_local_checkpoint(tiny, tmp_path: Path) -> None:
    faults = ["data.poison_steps=[7,8,9]", "guards.non_finite=roll_back", "checkpoint.keep_best=0"]
    (tmp_path / "local").mkdir()
    plain = tiny.train(*faults, run="plain")
    local = tiny.train(*faults, *settings(tmp_path / "local"), run="local")
    (back,) = (e for e in tiny.events("local") if e["event"] == "rollback")
    assert back["to_step"] == 6
    assert local.state_digest == plain.state_digest
    assert tiny.records("local") == tiny.records("plain")


def test_one_of_a_host_that_the_run_has_left_is_not_taken(killed, whole, logged: list[str]) -> None:
    away = local_dir(killed).rename(local_dir(killed).with_name("away"))
    with pytest.raises(Killed):  # on another host, which comes less far than the first had
        killed.train("checkpoint.every=100", hooks=[KillAt(9)])
    away.rename(local_dir(killed))
    resumed(killed, whole, 8)
    assert any("done again since" in line for line in logged)


def test_a_renamed_run_keeps_its_local_checkpoints(killed, whole) -> None:
    code, _, err = killed.command("runs", "rename", "main", "other")
    assert code == 0, err
    result = killed.train(*settings(local_dir(killed)), run="other")
    assert result.resumed_from == 9
    assert result.state_digest == whole.result.state_digest


def test_runs_rm_removes_the_local_checkpoints_of_the_run_alone(killed) -> None:
    stranger = local_dir(killed) / f"aifx-{'0' * 32}-01234567"
    stranger.mkdir()
    (folder,) = (path for path in local_dir(killed).iterdir() if path != stranger)
    (folder / "filler").write_bytes(bytes(3 << 20))
    (removed,) = json.loads(killed.command("runs", "rm", "main", "--dry-run", "--json")[1])["removed"]
    assert removed["size_bytes"] > 3 << 20
    assert folder.exists()
    code, _, err = killed.command("runs", "rm", "main", "--yes")
    assert code == 0, err
    assert list(local_dir(killed).iterdir()) == [stranger]


def test_a_relative_path_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match="local_dir"):
        tiny.config("checkpoint.local_dir=fast")
