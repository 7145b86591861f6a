"""One training for all tests of this room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from trained_project import CONFIG, SENTENCE, aifx, document


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("eval") / "project"
    (project / "data").mkdir(parents=True)
    lines = [f"{i}. {SENTENCE}{i * 7919 % 1000}\n" for i in range(350)]
    (project / "data/whale.txt").write_text("".join(lines))
    (project / "aifx.toml").write_text(CONFIG)
    document(aifx(project, "train", "--json"))
    return project


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, so that each test may leave what it likes."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(trained, tmp_path / "project")
    shutil.copytree(trained.parent / "cache", tmp_path / "cache")
    return tmp_path / "project"
