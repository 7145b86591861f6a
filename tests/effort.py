"""Sample sizes of tests, and the commit that seeds their draws. With LONG=1 they try everything, for hours."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

from hypothesis import settings

ROOT = Path(__file__).parents[1]
IS_LONG = os.environ.get("LONG") == "1"


def examples(count: int, **options: Any) -> settings:
    """Settings of a property whose examples compile programs: `count` of them, ten times as many when long."""
    return settings(max_examples=10 * count if IS_LONG else count, deadline=None, **options)


def sample(count: int, share: float) -> int:
    """All of `count` when long, otherwise that share."""
    return count if IS_LONG else round(count * share)


def parts(count: int) -> range:
    """The parts of a test that takes hours as a whole: all `count` when long, otherwise one."""
    return range(count if IS_LONG else 1)


@functools.cache
def commit() -> str:
    """The commit under test, with `+` if files differ from it; `unknown` outside a git checkout."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def seed_of_commit() -> int:
    """A seed that is new for each commit and the same for all runs of it."""
    return int.from_bytes(commit().removesuffix("+").encode(), "big") % 2**32
