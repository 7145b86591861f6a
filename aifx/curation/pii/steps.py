"""Steps that find personal data in a version, and that make one without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aifx.core.errors import UsageError
from aifx.curation.pii.detector import Detector
from aifx.curation.pii.findings import shape_of
from aifx.curation.step import Outcome, ShardStep
from aifx.data.names import RESERVED, ROW
from aifx.data.versions.manifest import TEXT_TYPES, Manifest
from aifx.data.versions.parts import check_own_rows
from aifx.data.versions.shards import dropped_rows

if TYPE_CHECKING:
    from pyarrow import Table

Action: TypeAlias = Literal["mask", "drop"]

NESTED = ("list", "large_list", "struct", "map", "dictionary", "binary", "fixed_size_list")


def text_columns(manifest: Manifest) -> tuple[str, ...]:
    """The columns that are searched: all of strings that are of the source. Raises UsageError if there is none."""
    check_own_rows(manifest, "aifx data pii")
    found = [name for name, type_ in manifest.columns.items() if type_ in TEXT_TYPES and name not in RESERVED]
    if not found:
        why = f"its columns are {', '.join(f'{name} ({type_})' for name, type_ in manifest.columns.items())}"
        raise UsageError(f"{manifest.reference} has no column of texts to search", why, "aifx data ls")
    return tuple(found)


def unsearched_columns(manifest: Manifest) -> tuple[str, ...]:
    """The columns that may hold texts within another type, which is not searched."""
    return tuple(name for name, type_ in manifest.columns.items() if type_.partition("<")[0].strip() in NESTED)


@dataclass(frozen=True)
class FindPii(ShardStep):
    """Makes tables of spans, with the shape of each value."""

    detector: Detector

    name = "pii"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kinds": self.detector.kinds, "regions": self.detector.regions}

    def apply(self, rows: Table, work: Path) -> Outcome:
        import pyarrow as pa

        ids = rows[ROW].combine_chunks()
        spans = [
            {
                "row": ids[place].as_py(), "column": column, "kind": one.kind, "start": one.start, "end": one.end,
                "check": one.check, "shape": shape_of(text[one.start : one.end]),
            }
            for column in text_columns(self.parents[0].manifest)
            for place, text, found in self.detector.find_in(rows[column].combine_chunks())
            for one in found
        ]  # fmt: skip
        text, number = pa.string(), pa.int64()
        names = ("row", "column", "kind", "start", "end", "check", "shape")
        schema = pa.schema([(name, number if name in ("start", "end") else text) for name in names])
        return Outcome(pa.Table.from_pylist(spans, schema))


@dataclass(frozen=True)
class RemovePii(FindPii):
    """Masks personal data, or drops the rows that have any."""

    action: Action

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "action": self.action}

    def apply(self, rows: Table, work: Path) -> Outcome:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        facts: Counter[str] = Counter({"rows_found": 0})
        kinds: dict[int, set[str]] = {}
        for column in text_columns(self.parents[0].manifest):
            values = rows[column].combine_chunks()
            masked = np.zeros(len(values), bool)
            texts = []
            for place, text, found in self.detector.find_in(values):
                kinds.setdefault(place, set()).update(one.kind for one in found)
                facts.update(f"found.{one.kind}.{one.check}" for one in found)
                if self.action == "mask":
                    masked[place] = True
                    texts.append(self.detector.mask(text, found))
            if texts:
                values = pc.replace_with_mask(values, pa.array(masked), pa.array(texts, values.type))
                rows = rows.set_column(rows.column_names.index(column), column, values)
        facts["rows_found"] = len(kinds)
        facts.update(f"rows_found.{kind}" for found_kinds in kinds.values() for kind in found_kinds)
        counts = dict(sorted(facts.items()))
        if self.action == "mask":
            return Outcome(rows, facts=counts)
        keep = np.ones(len(rows), bool)
        keep[list(kinds)] = False
        order = sorted(kinds)
        rules = [f"pii.{min(kinds[place], key=self.detector.kinds.index)}" for place in order]
        ids = rows[ROW].take(pa.array(order, pa.int64()))
        return Outcome(rows.filter(pa.array(keep)), dropped_rows(ids, rules), counts)
