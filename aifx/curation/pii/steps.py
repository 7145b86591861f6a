"""Steps that find personal data in a version, and that make one without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import Table

from aifx.core.errors import UsageError
from aifx.curation.pii.finders import Detector, shape_of
from aifx.curation.step import Outcome, ShardStep
from aifx.data.chat.lines import texts_of, with_texts
from aifx.data.names import CHAT, RESERVED, ROW
from aifx.data.versions.manifest import TEXT_TYPES, Manifest
from aifx.data.versions.parts import check_own_rows
from aifx.data.versions.shards import dropped_rows

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


class _Texts:
    """The texts of a column: its values, or all texts in the JSON of chats.

    Attributes:
        values: Arrow array of the texts.
        rows: the row of each, int64 [texts].
        places: what each is called: the column, or a place such as "messages[1].content".
    """

    def __init__(self, column: str, values: Any, *, is_chat: bool) -> None:
        self._column, self._is_chat = values, is_chat
        if not is_chat:
            self.values, self.rows = values, np.arange(len(values))
            self.places: Sequence[str] = [column] * len(values)
            return
        found = [texts_of(chat) for chat in values.to_pylist()]
        self.rows = np.repeat(np.arange(len(found)), [*map(len, found)])
        self.places = [place for texts in found for place, _ in texts]
        self.values = pa.array([text for texts in found for _, text in texts], pa.string())

    def replaced(self, texts: Mapping[int, str]) -> Any:
        """The column with other texts, by their number."""
        by_row: dict[int, str] = {}
        for row in dict.fromkeys(int(self.rows[number]) for number in texts) if self._is_chat else ():
            first, stop = np.searchsorted(self.rows, (row, row + 1)).tolist()
            by_row[row] = with_texts(
                self._column[row].as_py(), {n - first: texts[n] for n in range(first, stop) if n in texts}
            )
        changed = by_row if self._is_chat else texts
        mask = np.zeros(len(self._column), bool)
        mask[list(changed)] = True
        return pc.replace_with_mask(self._column, pa.array(mask), pa.array(list(changed.values()), self._column.type))


@dataclass(frozen=True)
class FindPii(ShardStep):
    """Makes tables of spans, with the shape of each value."""

    detector: Detector

    name = "pii"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kinds": self.detector.kinds, "regions": self.detector.regions}

    def _texts(self, rows: Table) -> Iterator[tuple[str, _Texts]]:
        """The columns that are searched, with their texts."""
        manifest = self.parents[0].manifest
        for column in text_columns(manifest):
            is_chat = manifest.kind == "chat" and column == CHAT
            yield column, _Texts(column, rows[column].combine_chunks(), is_chat=is_chat)

    def apply(self, rows: Table, work: Path) -> Outcome:
        ids = rows[ROW].combine_chunks()
        spans = [
            {
                "row": ids[int(texts.rows[number])].as_py(), "column": texts.places[number], "kind": one.kind,
                "start": one.start, "end": one.end, "check": one.check, "shape": shape_of(text[one.start : one.end]),
            }
            for _, texts in self._texts(rows)
            for number, text, found in self.detector.find_in(texts.values)
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
        facts: Counter[str] = Counter({"rows_found": 0})
        kinds: dict[int, set[str]] = {}
        for column, texts in self._texts(rows):
            masked: dict[int, str] = {}
            for number, text, found in self.detector.find_in(texts.values):
                kinds.setdefault(int(texts.rows[number]), set()).update(one.kind for one in found)
                facts.update(f"found.{one.kind}.{one.check}" for one in found)
                if self.action == "mask":
                    masked[number] = self.detector.mask(text, found)
            if masked:
                rows = rows.set_column(rows.column_names.index(column), column, texts.replaced(masked))
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
