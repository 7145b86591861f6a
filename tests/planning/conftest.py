"""A project of a language model so small that its step compiles in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from aifx.core.project import Project

CONFIG = """\
[data]
vocab_size = 300
seq_len = 32

[model]
num_layers = 2
embed_dim = 32
num_heads = 2
mlp_dim = 64

[train]
num_steps = 12
global_batch_size = 8
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """It has no data: a plan needs none."""
    (tmp_path / "aifx.toml").write_text(CONFIG)
    return Project(tmp_path)
