"""A project with a small language model, for tests of meshes and of jobs of several processes."""

from __future__ import annotations

from pathlib import Path

TOML = """\
[task]
kind = "language"
[data]
train = ["text.txt"]
seq_len = 16
vocab_size = 280
[train]
global_batch_size = 8
num_steps = {num_steps}
validate_every = {validate_every}
[model]
embed_dim = 32
num_layers = 2
num_heads = 4
"""
TEXT = "the cat sat on the mat and the dog sat on the log\n" * 300


def write_project(root: Path, more: str = "", *, num_steps: int = 4, validate_every: int = 0) -> None:
    """Write `aifx.toml` and its text. `more` is TOML that follows the keys of `[model]`."""
    (root / "aifx.toml").write_text(TOML.format(num_steps=num_steps, validate_every=validate_every) + more)
    (root / "text.txt").write_text(TEXT)
