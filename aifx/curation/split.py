"""The step that sends each row to a split, near duplicates together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import Table

from aifx.core.digests import Hash64, fraction_of
from aifx.core.errors import DataError
from aifx.core.plurals import counted
from aifx.curation.dedupe import find_clusters, set_column, with_clusters
from aifx.curation.step import DecidedStep, Limits, Outcome, write_decisions
from aifx.data.names import CLUSTER, ROW, SPLIT
from aifx.data.versions.manifest import Version


@dataclass(frozen=True)
class Split(DecidedStep):
    """Writes `_split`: a hash of a row's duplicate cluster decides, so that duplicates are in one split.

    Attributes:
        validation: share of the clusters.
        test: share of the clusters.
        near: least Jaccard similarity of near duplicates; None for exact copies only.
        seed: of the hash.
    """

    validation: float
    test: float
    near: float | None
    seed: int = 0

    name = "split"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"validation": self.validation, "test": self.test, "near": self.near, "seed": self.seed}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        parent = self.parents[0]
        facts = {}
        if not has_clusters(parent, self.near):
            found = find_clusters(parent, self.near, work, limits)
            clustered = sum(found[name] for name in ("clusters", "exact", "near"))
            facts = {"clusters": found["clusters"], "clustered_rows": clustered}
        else:
            nothing = pa.table({"row": pa.array([], pa.int64()), "cluster": pa.array([], pa.string())})
            write_decisions(work, nothing)
        self._check(work)
        return facts

    def _check(self, work: Path) -> None:
        """Raise DataError if a split that has a share gets no row."""
        parent, empty = self.parents[0], {"train", "validation", "test"}
        empty -= {name for name, share in (("validation", self.validation), ("test", self.test)) if not share}
        columns = [name for name in (ROW, CLUSTER) if name in parent.manifest.columns]
        for task in range(len(parent.shards)):
            if not empty:
                return
            for part, decisions in self.decided_rows(task, work, columns):
                empty -= set(self._splits(part, decisions)[1])
        if empty:
            rows = counted(parent.manifest.rows, "row")
            why = f"a hash sends each cluster to a split, and none of {rows} is in this one"
            hint = f"aifx data split {parent.manifest.name} --seed {self.seed + 1}, or a larger share"
            raise DataError(f"no row of {parent.reference} is for {', '.join(sorted(empty))}", why, hint)

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        rows, splits = self._splits(rows, decisions)
        return Outcome(set_column(rows, SPLIT, pa.array(splits, pa.string())), facts=Counter(splits))

    def _splits(self, rows: Table, decisions: Table) -> tuple[Table, list[str]]:
        """The rows with their clusters, and the split of each."""
        if not has_clusters(self.parents[0], self.near):
            rows = with_clusters(rows, decisions)
        return rows, [self.split_of(cluster) for cluster in rows[CLUSTER].to_pylist()]

    def split_of(self, cluster: str) -> str:
        """The split of a cluster. It does not depend on the other rows, so that it stays if rows are added."""
        share = fraction_of(Hash64(f"{self.seed} {cluster}".encode()).digest())
        return "test" if share < self.test else "validation" if share < self.test + self.validation else "train"


def has_clusters(version: Version, near: float | None) -> bool:
    """Whether `_cluster` of a version holds the clusters at this similarity or a lower one."""
    step = version.manifest.step
    if CLUSTER not in version.manifest.columns or step.name not in ("dedupe", "split"):
        return False
    theirs = step.settings.get("near")
    return near is None or (theirs is not None and theirs <= near)
