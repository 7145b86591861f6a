"""A run that has ended and whose last checkpoint is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aifx.checkpoint.manifest import list_checkpoints
from aifx.commands.main import run as run_command
from aifx.core.project import Project
from aifx.kinds import read_config
from aifx.loading.steps import choose_step
from aifx.runs.status import run_status


def _data_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "state").rglob("*") if path.is_file() and path.parent.name == "d"]


def _flip(folder: Path) -> None:
    for path in _data_files(folder):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)


def _truncate(folder: Path) -> None:
    path = _data_files(folder)[0]
    path.write_bytes(path.read_bytes()[:-1])


def _delete(folder: Path) -> None:
    for path in _data_files(folder):
        path.unlink()


@pytest.fixture
def copied(tiny: Any, ended: Path, tmp_path: Path) -> Any:
    return replace(tiny, project=Project(Path(shutil.copytree(ended, tmp_path / "copied"))))


@pytest.mark.parametrize("damage", [_flip, _delete])
def test_training_goes_on_from_the_checkpoint_before(
    copied: Any, damage: Callable[[Path], None], logged: list[str]
) -> None:
    settings = ("checkpoint.keep_best=0",)
    before = copied.train(*settings)
    assert before.already
    damage(copied.run().checkpoints / "12")
    healed = copied.train(*settings)
    assert any("step 12 is damaged" in line for line in logged)
    assert not healed.already
    assert (healed.status, healed.step, healed.resumed_from) == ("completed", 12, 8)
    assert healed.state_digest == before.state_digest
    assert copied.train(*settings).already


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_truncate, "bytes and had"),
        (_delete, "is missing"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json: "),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    ],
    ids=["truncated", "deleted", "torn manifest", "manifest"],
)
def test_lists_report_it(
    copied: Any,
    damage: Callable[[Path], None],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied.run()
    assert run_status(run).damage is None
    damage(run.checkpoints / "12")
    assert [bool(info.damaged) for info in list_checkpoints(run.checkpoints)] == [False, True]
    assert why in str(run_status(run).damage)
    monkeypatch.chdir(copied.root)
    for command in (["runs", "ls"], ["ckpt", "ls", "--run", "main"], ["runs", "show", "main"]):
        assert run_command(command) == 0
        out = capsys.readouterr().out
        assert "damaged" in out, command
        assert why in out, command
    assert run_command(["runs", "ls", "--json"]) == 0
    assert why in json.loads(capsys.readouterr().out)["runs"][0]["damage"]


def test_opening_the_best_checkpoint_reports_it(copied: Any, logged: list[str]) -> None:
    run = copied.run()
    config = read_config(run.config, Project(copied.root))
    choose_step(run, config, "best")
    assert not logged
    _truncate(run.checkpoints / "12")
    assert choose_step(run, config, "best") == 8
    assert len(logged) == 1
    assert "step 12 is damaged" in logged[0]
