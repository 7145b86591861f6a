"""Tiny models of Hugging Face as folders, made of what is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peer_models
import peer_pictures
import pytest
from made_once import made_once
from safetensors.numpy import save_file

from aifx.core.project import Project

STORED = json.loads((Path(__file__).parent / "stored_logits.json").read_text())
PICTURES = json.loads((Path(__file__).parent / "stored_pictures.json").read_text())


def write_folder(folder: Path, name: str) -> Path:
    """The folder of a stored case."""
    case = STORED["cases"][name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(case["config"]))
    tensors = {key: peer_models.values_of(key, tuple(shape)) for key, shape in case["shapes"].items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    peer_models.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def hub_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a stored case to its folder, which no test changes."""
    return lambda name: made_once(tmp_path_factory, f"hub-{name}", lambda at: write_folder(at / name, name)) / name


def write_pictures(folder: Path, name: str) -> None:
    """The folder of a stored case of pictures."""
    case, preprocessor = PICTURES["cases"][name], peer_pictures.FIXED[name][2]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case["config"]))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    tensors = {key: peer_pictures.values_of(key, shape) for key, shape in case["shapes"].items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    images = peer_pictures.pictures(case["config"], preprocessor)
    np.savez(folder / "logits.npz", inputs=images, logits=np.array(case["logits"], np.float32))


@pytest.fixture(scope="session")
def picture_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same of image models. What transformers computes of it is in logits.npz."""
    return lambda name: (
        made_once(tmp_path_factory, f"pictures-{name}", lambda at: write_pictures(at / name, name)) / name
    )


@pytest.fixture
def hub_model(hub_models: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Llama of the test's own, which it may damage."""
    return shutil.copytree(hub_models("llama"), tmp_path / "llama")


@pytest.fixture
def empty_project(tmp_path: Path) -> Project:
    root = tmp_path / "project"
    root.mkdir()
    (root / "aifx.toml").write_text("")
    return Project(root)


@pytest.fixture(scope="session")
def stored_logits() -> dict[str, np.ndarray]:
    """Arrays of stored_logits.npz."""
    return dict(np.load(Path(__file__).parent / "stored_logits.npz"))
