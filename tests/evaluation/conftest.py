"""One training for all tests of this room."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from made_once import made_once
from trained_project import CLASSES_CONFIG, CONFIG, SENTENCE, aifx, document

PICTURES = Path(__file__).parents[2] / "templates/vision-inspection/data/fashion_mnist_small.npz"


def train_text(folder: Path) -> None:
    project = folder / "project"
    (project / "data").mkdir(parents=True)
    lines = [f"{i}. {SENTENCE}{i * 7919 % 1000}\n" for i in range(350)]
    (project / "data/whale.txt").write_text("".join(lines))
    (project / "aifx.toml").write_text(CONFIG)
    document(aifx(project, "train", "--json"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "eval", train_text) / "project"


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, so that each test may leave what it likes."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(trained, tmp_path / "project")
    shutil.copytree(trained.parent / "cache", tmp_path / "cache")
    return tmp_path / "project"


@pytest.fixture(scope="session")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of three classes, one of them rare, whose run "main" was trained. Tests only add reports to it."""
    project = tmp_path_factory.mktemp("classes") / "project"
    (project / "data").mkdir(parents=True)
    few = {name: values[:300] for name, values in np.load(PICTURES).items()}
    labels = {name: np.where(few[name] == 8, 1, np.where(few[name] == 1, 2, 0)) for name in few if "labels" in name}
    np.savez(project / "data/images.npz", **{**few, **labels})
    (project / "aifx.toml").write_text(CLASSES_CONFIG)
    document(aifx(project, "train", "--json"))
    return project
