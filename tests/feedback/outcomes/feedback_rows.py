"""The rows of a version that `aifx data feedback` made."""

from __future__ import annotations

from typing import Any

from pyarrow import parquet

from aifx.core.project import Project


def rows_of(project: Project, reference: str) -> dict[str, dict[str, Any]]:
    """By their column `order`."""
    paths = sorted((project.root / "datasets" / reference.replace("@", "/") / "shards").glob("*.parquet"))
    return {row["order"]: row for path in paths for row in parquet.read_table(path).to_pylist()}
