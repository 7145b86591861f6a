"""The step that puts the labels that people gave into a column of a new version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import multimode
from typing import TYPE_CHECKING, Any

from aifx.core.digests import sha256_of
from aifx.core.errors import UsageError
from aifx.core.json_values import encode_json
from aifx.curation.labels.store import STEP
from aifx.curation.step import Outcome, ShardStep
from aifx.data.names import ROW
from aifx.data.versions.manifest import TEXT_TYPES, Version

if TYPE_CHECKING:
    from pyarrow import Table


def decide(labels: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The label that more labellers gave to a row than any other, by row. A row without one is left out.

    Args:
        labels: label by labeller, by row.
    """
    return {row: found[0] for row, of_row in labels.items() if len(found := multimode(of_row.values())) == 1}


def check_labels(version: Version, column: str, labels: Mapping[str, str]) -> None:
    """Raise UsageError if there are no labels, or if the column holds other values than texts."""
    name = version.manifest.name
    if not labels:
        hint = f"aifx data label serve {name} --labels yes,no, or aifx data label import {name} FILE"
        hint = hint if column == "label" else f"{hint}, with --column {column}"
        raise UsageError(f"column {column} of {name} has no labels to apply", "nobody has labelled a row yet", hint)
    kind = version.manifest.columns.get(column, "string")
    if kind not in (*TEXT_TYPES, "null"):
        why = f"{version.reference} holds {kind} in it, and labels are texts"
        raise UsageError(f"labels cannot be applied to column {column}", why, "aifx data label import --column NAME")


@dataclass(frozen=True)
class ApplyLabels(ShardStep):
    """Sets the column of labelled rows. Other rows keep their value, or get null.

    Attributes:
        labels: by row.
    """

    column: str
    labels: Mapping[str, str]

    name = STEP

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"column": self.column, "labels": self._digest}

    @cached_property
    def _digest(self) -> str:
        return sha256_of(encode_json(sorted(self.labels.items())))

    def apply(self, rows: Table, work: Path) -> Outcome:
        import pyarrow as pa

        if self.column not in rows.column_names:
            rows = rows.append_column(self.column, pa.nulls(len(rows), pa.string()))
        before = rows[self.column].to_pylist()
        values = [self.labels.get(row, value) for row, value in zip(rows[ROW].to_pylist(), before, strict=True)]
        kept = rows.set_column(rows.column_names.index(self.column), self.column, pa.array(values, pa.string()))
        changed = sum(value != old for value, old in zip(values, before, strict=True))
        return Outcome(kept, None, {"rows_labelled": len(values) - values.count(None), "rows_changed": changed})
