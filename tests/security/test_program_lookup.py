"""Programs planted in the working directory: an empty or relative entry of PATH starts none of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from aifx.core.environment import find_program, need_program, with_safe_path
from aifx.core.errors import EnvironmentFault
from aifx.core.facts import Absent
from aifx.health import collective_launch
from aifx.health.fleet.transports import Inquiry, ask_slurm, ask_ssh
from aifx.health.host import Host
from aifx.health.slurm import scontrol
from aifx.runs.provenance import git_state
from aifx.scaffold.projects import find_template

PLANTED = ("chronyc", "git", "scontrol", "ssh", "srun", "aifx-test-program")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, whose programs leave a mark; PATH finds nothing else."""
    (tmp_path / "bin").mkdir()
    for name in PLANTED:
        for program in (tmp_path / name, tmp_path / "bin" / name):
            program.write_text(f"#!/bin/sh\n: > {tmp_path}/ran\n")
            program.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ":.:bin::./bin:")
    monkeypatch.setattr("aifx.health.slurm.FOLDERS", ("/nowhere",))
    return tmp_path


def test_nothing_of_the_working_directory_runs(folder: Path) -> None:
    # Not "chronyc" itself, which may be installed in /usr/sbin, where the host searches as well.
    assert isinstance(Host().run("aifx-test-program"), Absent)
    for name in PLANTED:
        assert find_program(name) is None
        with pytest.raises(EnvironmentFault, match=f"there is no {name} here"):
            need_program(name, "it is needed")
    with pytest.raises(EnvironmentFault, match="there is no scontrol here"):
        scontrol(["show", "node", "n1"])
    for ask in (ask_ssh, ask_slurm):
        with pytest.raises(EnvironmentFault, match="there is no s"):
            asyncio.run(ask(["n1"], Inquiry(), lambda node, document: None))
    for over_slurm in (False, True):
        with pytest.raises(EnvironmentFault, match="there is no s"):
            collective_launch.run_test(["n1", "n2"], 1.0, collective_launch.Options(over_slurm=over_slurm))
    assert git_state(folder) is None
    with pytest.raises(EnvironmentFault, match="cannot fetch"):
        find_template("https://example.org/x.git")
    assert not (folder / "ran").exists()


def test_absolute_entries_are_searched_and_give_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f":.:{folder}/bin")
    assert find_program("ssh") == f"{folder}/bin/ssh"
    assert find_program("sh", ("/bin",)) == "/bin/sh"
    assert Host().run("aifx-test-program") == ""
    assert (folder / "ran").exists()


def test_libraries_search_the_same_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f":{folder}/bin:.")
    with with_safe_path():
        assert os.environ["PATH"] == f"{folder}/bin"
    assert os.environ["PATH"] == f":{folder}/bin:."
    monkeypatch.setenv("PATH", ".:")
    with with_safe_path():
        assert os.environ["PATH"] == os.defpath
