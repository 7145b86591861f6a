"""How much of what could be tried is tried: a sample in `make test` and `.ci/run`, everything in `make test-long`."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
IS_LONG = os.environ.get("LONG") == "1"
JOURNAL = ROOT / "build" / "test-long.jsonl"
"""What `make test-long` has done, one JSON line per test that passed; scripts/reliability.py makes a table of it."""


def examples(count: int, **options: Any) -> settings:
    """Settings of a property whose examples compile programs: `count` of them, ten times as many when long."""
    return settings(max_examples=10 * count if IS_LONG else count, deadline=None, **options)


def sample(count: int, share: float) -> int:
    """All of `count` when long, otherwise that share."""
    return count if IS_LONG else round(count * share)


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


@dataclass(frozen=True)
class Journal:
    """Makes a long test resumable: a test that passed on this commit is skipped.

    Attributes:
        test: the test's name, with its parameters.
    """

    test: str

    def skip_if_passed(self) -> None:
        for line in JOURNAL.read_text(encoding="utf-8").splitlines() if JOURNAL.exists() else ():
            entry = json.loads(line)
            if (entry["test"], entry["commit"]) == (self.test, commit()):
                pytest.skip(f"passed on {entry['date']}")

    def passed(self, *, trials: int, unit: str, details: Mapping[str, int] | None = None) -> None:
        """Add a line to the journal. One write, so that parallel workers do not mix their lines."""
        entry = {
            "test": self.test,
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "trials": trials,
            "unit": unit,
            "details": dict(details or {}),
        }
        JOURNAL.parent.mkdir(exist_ok=True)
        with JOURNAL.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
