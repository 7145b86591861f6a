"""Runs of the task in tests/training/tiny.py that wait where a test wants to strike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held_at(root: Path, batch: int) -> Iterator[None]:
    """Inside, runs of the project do not get beyond this number of steps."""
    held = root / "held"
    held.write_text(str(batch))
    try:
        yield
    finally:
        held.unlink()
