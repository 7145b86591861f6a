"""The record of the rows that `aifx data erase` took from a data set, by which `aifx data add` leaves them out.

    <name>/erased/<digest>.json   of each erasure: the ids of its rows, and digests of their contents

A file that is read again gives a row the same id. A file that has changed gives it another, but its content is the
same. The record has neither the content nor the condition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import Table

from aifx.core.digests import sha256_of, sha256_of_json
from aifx.core.json_files import encode, parse_line
from aifx.core.json_values import encode_json
from aifx.curation.step import Outcome, without
from aifx.data.names import CHAT, RESERVED, ROW, Kind
from aifx.data.readers.base import TEXT
from aifx.data.readers.formats import IMAGE
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_parts, read_shard, records_of

ERASED = "erased"
"""The folder of a data set with the record, and the rule of rows that are left out."""

_CONTENT: dict[Kind, str] = {"text": TEXT, "chat": CHAT, "images": IMAGE}
"""The column with the content of a row; of a table, all columns of its source are."""


@dataclass(frozen=True)
class ErasedRows:
    """Rows that were erased from a data set, by id and by digest of their contents."""

    ids: frozenset[str]
    contents: frozenset[str]

    @cached_property
    def digest(self) -> str:
        """A digest of all of them."""
        return sha256_of_json([sorted(self.ids), sorted(self.contents)])

    @cached_property
    def _ids(self) -> Any:
        return pa.array(sorted(self.ids), pa.string())

    def are_in(self, ids: Any) -> Any:
        """[rows] whether each id is that of an erased row."""
        return pc.is_in(ids, value_set=self._ids)

    def drop(self, outcome: Outcome, kind: Kind | None) -> Outcome:
        """An outcome without erased rows.

        Args:
            kind: of rows whose contents count, too: those of files that are read. None for rows of a version.
        """
        rows = outcome.kept
        if rows is None or not len(rows):
            return outcome
        is_erased = self.are_in(rows[ROW]).to_numpy(zero_copy_only=False)
        if kind is not None and self.contents:
            is_erased |= np.array([one in self.contents for one in _contents(rows, kind)], bool)
        if not is_erased.any():
            return outcome
        places = np.flatnonzero(is_erased)
        found = without(rows, places, [ERASED] * len(places))
        return replace(outcome, kept=found.kept, dropped=found.dropped)


def read_erased(catalog: Catalog, name: str) -> ErasedRows | None:
    """The rows that were erased from a data set. None if none were."""
    found = [parse_line(data) or {} for data in catalog.store.read_files(f"{name}/{ERASED}").values()]
    if not found:
        return None
    ids, contents = ({text for one in found for text in one.get(key, ())} for key in ("rows", "contents"))
    return ErasedRows(frozenset(ids), frozenset(contents))


def record_erased(catalog: Catalog, rows: Sequence[str], holding: Iterable[Version], latest: Version) -> None:
    """Record rows that are to be erased from the data set of its latest version. Repeated, it changes nothing.

    A content that a row of the latest version keeps is not recorded: the condition does not mean all rows that have it.

    Args:
        rows: their ids.
        holding: the versions of the data set that have some of them.
    """
    erased = ErasedRows(frozenset(rows), frozenset())
    texts: set[Any] = set()
    contents: set[str] = set()
    for version in holding:
        for found in _parts(version, erased, is_erased=True):
            contents.update(_contents(found, version.manifest.kind))
            if (column := _CONTENT.get(version.manifest.kind)) in found.column_names:
                texts.update(found[column].to_pylist())
    kind = latest.manifest.kind
    for found in _parts(latest, erased, is_erased=False):
        if (column := _CONTENT.get(kind)) in found.column_names:  # few rows have one of these texts
            found = found.filter(pc.is_in(found[column], value_set=pa.array(list(texts), found[column].type)))
        contents.difference_update(_contents(found, kind))
    data = encode(encode_json({"rows": sorted(rows), "contents": sorted(contents)}) + "\n")
    catalog.store.write(f"{latest.manifest.name}/{ERASED}/{sha256_of(data)[:16]}.json", iter([data]))


def holds_erased(version: Version, erased: ErasedRows) -> bool:
    """Whether a version has some of the rows, by id."""
    ids = (read_shard(path, [ROW])[ROW] for path in version.shards)
    return any(pc.any(erased.are_in(one), min_count=0).as_py() for one in ids)


def _parts(version: Version, erased: ErasedRows, *, is_erased: bool) -> Iterator[Table]:
    """The rows of a version that are erased, or those that are not, some at a time."""
    for path in version.shards:
        for part in read_parts(path):
            matches = erased.are_in(part[ROW])
            yield part.filter(matches if is_erased else pc.invert(matches))


def _contents(rows: Table, kind: Kind) -> list[str]:
    """[rows] a digest of the content of each row."""
    column = _CONTENT.get(kind)
    names = [column] if column in rows.column_names else sorted(set(rows.column_names).difference(RESERVED))
    return [sha256_of(repr(_present(record))) for record in records_of(rows.select(names))]


def _present(value: Any) -> Any:
    """A value without what is null or empty in it: other rows of a file add columns and fields, and widen integers."""
    if isinstance(value, dict):
        return {name: _present(one) for name, one in sorted(value.items()) if one not in (None, "")}
    if isinstance(value, list):
        return [_present(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
