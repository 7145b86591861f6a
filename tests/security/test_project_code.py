"""Attacks by a project around the working directory: its module runs where nobody asked, or it is another user's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.commands.main import run as run_command
from aifx.config.sections import CheckpointSection
from aifx.core.facts import Absent
from aifx.core.project import Project, UntrustedProject, find_project
from aifx.health.host import Host
from aifx.health.probes import project as project_probe
from aifx.health.project_probe import look_at
from aifx.verbs.completion import complete_run, complete_setting

CONFIG = '[task]\nkind = "their_task:Task"\n'
STRANGER = 54321

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that the project's module writes when it is imported."""
    return tmp_path / "imported"


@pytest.fixture
def project(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with a task of its own and a run, in whose subfolder the command runs."""
    root = tmp_path / "project"
    (root / "runs/main").mkdir(parents=True)
    (root / "below").mkdir()
    (root / "aifx.toml").write_text(CONFIG)
    (root / "runs/main/config.toml").write_text(CONFIG)
    (root / "their_task.py").write_text(f"open({str(marker)!r}, 'a').close()\n")
    checkpoints = Checkpoints(root / "runs/main/checkpoints", CheckpointSection())
    checkpoints.save(10, {"params": {"w": np.arange(4.0)}}, host={})
    checkpoints.wait()
    monkeypatch.chdir(root / "below")
    monkeypatch.setattr("aifx.health.probes.project.LIMIT_S", 300.0)
    before = list(sys.path)
    yield root
    sys.path[:] = before
    sys.modules.pop("their_task", None)


@pytest.mark.parametrize(
    "args",
    [
        ["runs", "ls"],
        ["runs", "show", "main"],
        ["runs", "watch", "main", "--once"],
        ["ckpt", "ls"],
        ["ckpt", "show"],
        ["ckpt", "verify"],
    ],
    ids=" ".join,
)
def test_commands_that_only_look_do_not_import_the_task(
    project: Path, marker: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(args)
    assert capsys.readouterr().out
    assert not marker.exists()


def test_completion_does_not_import_the_task(project: Path, marker: Path) -> None:
    assert complete_run("") == ["main"]
    assert complete_setting("train.")
    assert not marker.exists()


def test_the_doctor_imports_the_task_only_if_asked_to(project: Path, marker: Path) -> None:
    found = look_at(Project(project))
    assert isinstance(found, Absent)
    assert "--project" in found.why
    assert not marker.exists()
    look_at(Project(project), imports_task=True)  # the attack is real
    assert marker.exists()


@pytest.mark.parametrize("asked", [False, True])
def test_the_option_reaches_the_probe(project: Path, marker: Path, asked: bool) -> None:
    project_probe.collect(Host(imports_project=asked))
    assert marker.exists() == asked


@pytest.mark.parametrize("args", [["config", "show"], ["config", "check"], ["config", "show", "--run", "main"]])
def test_the_configuration_announces_what_it_imports(
    project: Path, marker: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(args)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"importing their_task:Task from {project}"
    assert marker.exists()


@needs_root
@pytest.mark.parametrize("args", [["config", "show"], ["runs", "ls"], ["ckpt", "ls"], ["train"], ["config", "keys"]])
def test_a_strangers_project_above_is_not_used(
    project: Path, marker: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(project / "aifx.toml", STRANGER, STRANGER)
    assert run_command(args) == 2
    said = capsys.readouterr().err
    assert f"{project}/aifx.toml" in said
    assert f"uid {STRANGER}" in said
    assert f"export AIFX_TRUST={project}" in said
    assert not marker.exists()


@needs_root
def test_the_doctor_names_a_strangers_project_and_goes_on(project: Path, marker: Path) -> None:
    os.chown(project / "aifx.toml", STRANGER, STRANGER)
    found = project_probe.collect(Host(imports_project=True))
    assert isinstance(found, Absent)
    assert "belongs to another user" in found.why
    assert "AIFX_TRUST" in found.why
    assert not marker.exists()
    assert complete_run("") == []


@needs_root
def test_a_strangers_link_is_a_strangers_project(project: Path) -> None:
    (project / "aifx.toml").rename(project / "real.toml")
    (project / "aifx.toml").symlink_to("real.toml")
    os.lchown(project / "aifx.toml", STRANGER, STRANGER)
    with pytest.raises(UntrustedProject):
        find_project()


@needs_root
def test_a_trusted_project_is_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(project / "aifx.toml", STRANGER, STRANGER)
    monkeypatch.setenv("AIFX_TRUST", str(project / "below"))
    with pytest.raises(UntrustedProject):
        find_project()
    monkeypatch.setenv("AIFX_TRUST", f"/elsewhere:{project}")
    assert find_project().root == project


@needs_root
def test_in_the_working_directory_the_folders_owner_is_trusted_and_others_are_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    os.chown(project / "aifx.toml", STRANGER, STRANGER)  # as in /tmp, where anybody can put one
    with pytest.raises(UntrustedProject):
        find_project()
    os.chown(project, STRANGER, STRANGER)
    assert find_project().root == project
