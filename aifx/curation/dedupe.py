"""The step that drops duplicates, or marks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import Table

from aifx.core.errors import UsageError
from aifx.curation.duplicates import find_duplicates
from aifx.curation.sketches import open_sketches
from aifx.curation.step import DecidedStep, Limits, Outcome, without_dropped
from aifx.curation.work_folders import steps_folder
from aifx.data.names import CLUSTER, ROW
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import Version

SKETCHES = "sketches"


@dataclass(frozen=True)
class Dedupe(DecidedStep):
    """Keeps one row of each cluster of duplicates, and writes the cluster of each row.

    Attributes:
        near: least Jaccard similarity of near duplicates; None for exact copies only.
        mark: keep all rows.
    """

    near: float | None
    mark: bool = False

    name = "dedupe"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"near": self.near, "mark": self.mark}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        return find_clusters(self.parents[0], self.near, work, limits)

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        rows = with_clusters(rows, decisions)
        if self.mark:
            return Outcome(rows)
        return without_dropped(rows, decisions, twin="cluster")


def find_clusters(version: Version, near: float | None, work: Path, limits: Limits) -> dict[str, int]:
    """Find the duplicates of a version, with the sketches that its data set keeps.

    Raises UsageError for near duplicates of what is not text, SketchesOutdated.
    """
    name = version.manifest.name
    if near is not None and version.manifest.kind != "text":
        why = f"{version.reference} holds {version.manifest.kind}, whose exact copies aifx finds"
        raise UsageError("--near is for text", why, f"aifx data dedupe {name}")
    sketches = work.parents[1] / SKETCHES  # work is <data set>/.work-<key>/prepared
    if near is not None:
        open_sketches(sketches, f"aifx data dedupe {version.reference} --near {near:g} --rebuild-sketches")
    return find_duplicates(version, near, work, sketches, limits)


def sketches_of(catalog: Catalog, name: str) -> Path:
    """The folder that keeps the sketches of a data set."""
    return steps_folder(name, catalog) / SKETCHES


def with_clusters(rows: Table, decisions: Table) -> Table:
    """The rows with the column `_cluster`: a row that has no duplicates is its own."""
    clusters = rows[ROW].cast(pa.string()).to_numpy(zero_copy_only=False).astype(object)
    clusters[decisions["row"].to_numpy()] = decisions["cluster"].to_numpy(zero_copy_only=False)
    return set_column(rows, CLUSTER, pa.array(clusters, pa.string()))


def set_column(rows: Table, name: str, values: Any) -> Table:
    """The rows with a column added or replaced."""
    if name in rows.column_names:
        return rows.set_column(rows.column_names.index(name), name, values)
    return rows.append_column(name, values)
