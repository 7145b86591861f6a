"""Steps that find personal data in a version, and that make one without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import Table

from aifx.core.errors import UsageError
from aifx.curation.pii.finders import Detector, Finding, shape_of
from aifx.curation.step import Outcome, ShardStep, set_column, without
from aifx.data.chat.lines import texts_of, with_texts
from aifx.data.names import CHAT, RESERVED, ROW
from aifx.data.versions.catalog import check_own_rows
from aifx.data.versions.manifest import TEXT_TYPES, Manifest

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
        self.column, self._column, self._is_chat = column, values, is_chat
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
        changed = texts
        if self._is_chat:
            changed = {}
            for row in dict.fromkeys(int(self.rows[number]) for number in texts):
                first, stop = np.searchsorted(self.rows, (row, row + 1)).tolist()
                own = {number - first: texts[number] for number in range(first, stop) if number in texts}
                changed[row] = with_texts(self._column[row].as_py(), own)
        mask = np.zeros(len(self._column), bool)
        mask[list(changed)] = True
        return pc.replace_with_mask(self._column, pa.array(mask), pa.array(list(changed.values()), self._column.type))


class _Found(NamedTuple):
    """A text with personal data: one of `texts`, by its number."""

    texts: _Texts
    number: int
    text: str
    findings: Sequence[Finding]

    @property
    def row(self) -> int:
        return int(self.texts.rows[self.number])


def _kinds_by_row(found: Iterable[_Found]) -> dict[int, set[str]]:
    kinds: dict[int, set[str]] = {}
    for each in found:
        kinds.setdefault(each.row, set()).update(one.kind for one in each.findings)
    return kinds


def _counts(found: Sequence[_Found]) -> dict[str, int]:
    """The facts about some rows: findings by kind and check, and rows by kind."""
    kinds = _kinds_by_row(found)
    facts = Counter({"rows_found": len(kinds)})
    facts.update(f"found.{one.kind}.{one.check}" for each in found for one in each.findings)
    facts.update(f"rows_found.{kind}" for of_row in kinds.values() for kind in of_row)
    return dict(sorted(facts.items()))


@dataclass(frozen=True)
class FindPii(ShardStep):
    """Makes tables of spans, with the shape of each value."""

    detector: Detector

    name = "pii"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kinds": self.detector.kinds, "regions": self.detector.regions}

    @property
    def worker_bytes(self) -> int:
        return 24 << 20

    def _found(self, rows: Table) -> list[_Found]:
        """The texts with personal data in the columns that are searched."""
        manifest = self.parents[0].manifest
        columns = [
            _Texts(column, rows[column].combine_chunks(), is_chat=manifest.kind == "chat" and column == CHAT)
            for column in text_columns(manifest)
        ]
        return [_Found(texts, *found) for texts in columns for found in self.detector.find_in(texts.values)]

    def apply(self, rows: Table, work: Path) -> Outcome:
        ids, found = rows[ROW].combine_chunks(), self._found(rows)
        spans = [
            {
                "row": ids[each.row].as_py(), "column": each.texts.places[each.number], "kind": one.kind,
                "start": one.start, "end": one.end, "check": one.check,
                "shape": shape_of(each.text[one.start : one.end]),
            }
            for each in found
            for one in each.findings
        ]  # fmt: skip
        text, number = pa.string(), pa.int64()
        names = ("row", "column", "kind", "start", "end", "check", "shape")
        schema = pa.schema([(name, number if name in ("start", "end") else text) for name in names])
        return Outcome(pa.Table.from_pylist(spans, schema), facts=_counts(found))


@dataclass(frozen=True)
class RemovePii(FindPii):
    """Masks personal data, or drops the rows that have any."""

    action: Action

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "action": self.action}

    def apply(self, rows: Table, work: Path) -> Outcome:
        found = self._found(rows)
        if self.action == "mask":
            for texts, own in groupby(found, attrgetter("texts")):
                masked = self.detector.mask((each.number, each.text, each.findings) for each in own)
                rows = set_column(rows, texts.column, texts.replaced(masked))
            return Outcome(rows, facts=_counts(found))
        kinds = dict(sorted(_kinds_by_row(found).items()))
        rules = [f"pii.{min(of_row, key=self.detector.kinds.index)}" for of_row in kinds.values()]
        return replace(without(rows, list(kinds), rules), facts=_counts(found))
