from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aifx.core.project import Project
from aifx.data.sections import TextSection
from aifx.data.text import TextData, TextFormat


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project with a cache of its own."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    return Project(root)


@pytest.fixture
def write(project: Project) -> Callable[..., Path]:
    """Writes a file of the project's data folder."""

    def write(name: str, content: bytes | str) -> Path:
        path = project.root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def open_(project: Project) -> Callable[..., TextData]:
    """`open_text` with small defaults."""

    def open_(assets: str = "assets", **keys: Any) -> TextData:
        section = TextSection(**{"seq_len": 16, "vocab_size": 300, **keys})
        return TextFormat.open(section, project, project.root / assets)[1]

    return open_
