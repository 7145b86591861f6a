"""A project with the tiny task of tests/training, for suites that measure a project."""

from __future__ import annotations

import shutil
from pathlib import Path

TINY = Path(__file__).parent.parent / "training" / "tiny.py"
TOML = """\
[task]
kind = "tiny:TinyTask"

[train]
num_steps = 100
global_batch_size = 8
validate_every = 0
"""


def make_tiny_project(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "aifx.toml").write_text(TOML)
    shutil.copy(TINY, folder / "tiny.py")
    return folder
