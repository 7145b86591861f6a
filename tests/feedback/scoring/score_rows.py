"""Rows to score."""

from __future__ import annotations

import json
from pathlib import Path


def write_rows(root: Path, numbers: range, name: str = "new.jsonl") -> None:
    """Rows whose values are a function of their key."""
    rows = [{"order": f"o{n}", "x": n % 7 - 3.0, "y": n % 5 - 2.0} for n in numbers]
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
