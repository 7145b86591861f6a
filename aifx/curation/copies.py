"""The step that drops rows of tables and pictures that a test has too, and the report of them.

Texts share words with a test. Other rows are compared exactly, as `dedupe` finds copies: the values of a table's
columns, or the bytes of a picture's file. The columns that aifx adds, such as `_split`, and the label of a picture do
not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import Table

from aifx.core.calls import call_each
from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.progress import report_progress
from aifx.curation.decontaminate import (
    Contamination,
    Decontaminate,
    Overlap,
    Reference,
    ReferenceTexts,
    compares_training,
    decisions_of,
    report_overlaps,
    with_versions,
)
from aifx.curation.duplicates import row_digests
from aifx.curation.held_out import is_held_out
from aifx.curation.step import Limits, numbered_parts
from aifx.data.names import RESERVED, ROW, SOURCE, SPLIT
from aifx.data.versions.catalog import check_shards
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_parts, return_memory

BYTES_PER_ROW = 192
"""Memory for each row of a reference: its digest, its `_row` and its source."""

NUMBERS = ("int", "uint", "float", "double", "decimal")


@dataclass(frozen=True)
class ReferenceRows:
    """The rows of a reference.

    Attributes:
        types: Arrow types of the columns to compare, by name; empty for pictures.
        digests: in order.
        rows: `_row` and `_source` of each.
    """

    reference: Reference
    types: Mapping[str, str]
    digests: np.ndarray
    rows: Table

    def find(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places of the digests that are here, and of the rows that have them."""
        places = np.minimum(np.searchsorted(self.digests, digests), max(len(self.digests) - 1, 0))
        found = np.flatnonzero(self.digests[places] == digests) if len(self.digests) else np.zeros(0, np.int64)
        return found, places[found]

    def overlap(self, row: Mapping[str, Any], place: int) -> Overlap:
        """The report on a row that is a copy of the one at a place."""
        own: dict[str, Any] = self.rows.slice(place, 1).to_pylist()[0]
        name, twin = self.reference.name, own[ROW]
        where = f"{own.get(SOURCE, name)}, row {twin.rpartition('-')[2]}"
        return Overlap(row[ROW], row.get(SOURCE, ""), 0, 0, name, where, twin if self.reference.has_ids else None, "")


def find_copied(version: Version, references: Sequence[Reference], limits: Limits, most: int) -> Contamination:
    """Compare the rows of a version with those of references, and report `most` of those that are copies."""
    check_shards(version)
    tests = _read_tests(version, with_versions(references), limits)
    against = tuple(ReferenceTexts(test.reference.name, len(test.digests), 0) for test in tests)
    return report_overlaps(version, against, _find_copies(version, tests, limits), most)


@dataclass(frozen=True)
class DropCopied(Decontaminate):
    """Drops the rows that are copies of a row of a reference."""

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "words": 0}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        version = self.parents[0]
        tests = _read_tests(version, self.references, limits)
        self.write(work, {shard: decisions_of(found) for shard, found in _find_copies(version, tests, limits)})
        return {"reference_texts": sum(len(test.digests) for test in tests), "too_short": 0}


def _read_tests(version: Version, references: Sequence[Reference], limits: Limits) -> list[ReferenceRows]:
    rows = sum(reference.version.manifest.rows for reference in references)
    if rows * BYTES_PER_ROW > limits.spare_bytes:
        why = f"an index of {rows:,} rows needs {readable_bytes(rows * BYTES_PER_ROW)}"
        hint = "a larger --memory, or fewer references with --against"
        raise EnvironmentFault(f"--memory {readable_bytes(limits.memory_bytes)} is too little", why, hint)
    return [_read_test(version, reference) for reference in references]


def _read_test(version: Version, reference: Reference) -> ReferenceRows:
    of = reference.version.manifest
    types = _common_types(version, reference) if of.kind == "table" else {}
    digests, places = [np.zeros(0, "S16")], []
    content = [*(types or ["image"]), *([SPLIT] if reference.is_held_out else [])]
    for path in reference.version.shards:
        for rows in read_parts(path, [name for name in (ROW, SOURCE, *content) if name in of.columns]):
            kept = rows.filter(pa.array(is_held_out(rows))) if reference.is_held_out else rows
            digests.append(_digests(kept, types))
            places.append(kept.select([name for name in (ROW, SOURCE) if name in of.columns]))
    found = np.concatenate(digests)
    order = np.argsort(found, kind="stable")
    named = pa.concat_tables(places) if places else pa.table({ROW: pa.array([], pa.string())})
    return ReferenceRows(reference, types, found[order], named.take(pa.array(order)))


def _common_types(version: Version, reference: Reference) -> dict[str, str]:
    """The columns that both tables have. Numbers of two types get one, so that 1 and 1.0 are the same value."""
    own, theirs = ({**one.manifest.columns} for one in (version, reference.version))
    types = {}
    for name in sorted((own.keys() & theirs.keys()) - {*RESERVED}):
        pair = (own[name], theirs[name])
        if pair[0] != pair[1] and all(each.startswith(NUMBERS) for each in pair):
            types[name] = "float" if "float" in pair else "double"
        else:
            types[name] = ""
    if not types:
        why = f"{version.reference} has none of its columns"
        raise UsageError(f"{reference.name} cannot be compared with", why, "--against a table with the same columns")
    return types


def _digests(rows: Table, types: Mapping[str, str]) -> np.ndarray:
    """128 bits of a SHA-256 of each row, as texts of 16 bytes, which NumPy can sort. [rows]"""
    if types:
        casts = {name: rows[name].cast(type_, safe=False) if type_ else rows[name] for name, type_ in types.items()}
        rows = pa.table(casts)
    halves = np.stack(row_digests(rows, "table" if types else "images"), axis=1)
    return np.ascontiguousarray(halves).view("S16").ravel()


def _find_copies(
    version: Version, tests: Sequence[ReferenceRows], limits: Limits
) -> Iterator[tuple[int, list[tuple[int, Overlap]]]]:
    """Yield for each shard its number and the copies in it, each with its row in the shard."""
    files = version.manifest.shards
    scan = partial(_scan, tests, compares_training(version, [test.reference for test in tests]))
    with report_progress(f"comparing {version.reference}", sum(file.bytes for file in files), "bytes") as progress:
        for index, found in call_each(scan, list(version.shards), limits.workers, begin=return_memory):
            yield index, found
            progress.advance(files[index].bytes)


def _scan(tests: Sequence[ReferenceRows], is_training: bool, path: Path) -> list[tuple[int, Overlap]]:
    found: dict[int, Overlap] = {}
    for first, rows in numbered_parts(path):
        numbers = np.arange(len(rows))
        if is_training and SPLIT in rows.column_names:
            numbers = np.flatnonzero(~is_held_out(rows))
        chosen = rows.take(pa.array(numbers))
        names = chosen.select([name for name in (ROW, SOURCE) if name in rows.column_names])
        for test in reversed(tests):  # the first reference that has a row is reported
            for row, place in zip(*test.find(_digests(chosen, test.types)), strict=True):
                found[first + int(numbers[row])] = test.overlap(names.slice(row, 1).to_pylist()[0], int(place))
    return sorted(found.items(), key=lambda item: item[0])
