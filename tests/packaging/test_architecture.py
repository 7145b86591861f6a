"""docs/architecture.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_LINES = 700
"""That a newcomer reads from the loop to the layer."""


def section(title: str) -> str:
    page = (ROOT / "docs" / "architecture.md").read_text()
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_a_training_step_is_read_in_one_sitting() -> None:
    files = re.findall(r"^\| `(aifx/[\w/]+\.py)` \|", section("A training step"), re.MULTILINE)
    assert len(files) >= 4
    assert sum(len((ROOT / file).read_text().splitlines()) for file in files) <= MOST_LINES


def test_every_room_is_described() -> None:
    described = set(re.findall(r"`([a-z]+(?:/|\.py))(?:<family>/)?`", section("The house")))
    rooms = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "aifx").iterdir()
        if path.name[0] not in "_."
    }
    assert rooms - {"py.typed"} <= described
