"""Projects, and processes that do not outlive their test."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_once import made_once
from real_command import TINY, Command, settings


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def aifx(tmp_path: Path, cache: Path) -> Command:
    return Command(tmp_path, cache)


@pytest.fixture
def project(aifx: Command) -> Command:
    """A freshly made language-model project."""
    made = aifx("init", "project", "--template", "language-model", "--yes")
    assert made.returncode == 0, made.stderr
    return Command(aifx.cwd / "project", aifx.cache)


def train_text(folder: Path) -> None:
    aifx = Command(folder, folder / "cache")
    assert aifx("init", "project", "--template", "language-model", "--yes").returncode == 0
    project = Command(folder / "project", aifx.cache)
    done = project("train", *settings([*TINY, "train.num_steps=20"]), "--json")
    assert done.returncode == 0, done.stderr
    (project.cwd / "report.json").write_text(done.stdout)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A language-model project whose run "main" took 20 steps, reported in report.json. Do not train in it."""
    folder = made_once(tmp_path_factory, "trained", train_text)
    return Command(folder / "project", folder / "cache")


@pytest.fixture
def trained_copy(trained: Command, tmp_path: Path) -> Command:
    return Command(Path(shutil.copytree(trained.cwd, tmp_path / "project")), trained.cache)


@pytest.fixture
def started() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """Registers a process that must not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def register(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        processes.append(process)
        return process

    yield register
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
