"""Rows that share a key, found by sorting within a limit of memory.

A file has columns of keys for the rows of a shard: 64-bit numbers, one column after the other, so that each is read
without the others. 0 is no key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from aifx.curation.words import I64, U64

SORT_BYTES = 64
"""Of memory for each key that is sorted."""


def write_keys(file: IO[bytes], rows: int, first: int, columns: Sequence[U64]) -> None:
    """Write the keys of some rows of a shard of `rows` rows, from its row `first` on."""
    for index, keys in enumerate(columns):
        file.seek(8 * (index * rows + first))
        file.write(np.ascontiguousarray(keys).data)


@dataclass(frozen=True)
class Keys:
    """The keys of all rows.

    Attributes:
        files: of each shard.
        firsts: [shards + 1] the number of each shard's first row, and the number of all rows.
    """

    files: Sequence[Path]
    firsts: I64

    def shared(self, column: int, tie: int, memory_bytes: int) -> Iterator[tuple[U64, I64, U64]]:
        """Keys in a column that other rows have too, their rows, and the rows' keys in the column `tie`.

        They are ordered by key, tie and row, and come in parts: all rows of a key are in one. The parts depend on the
        memory, and their order does not.
        """
        bits = max(int(self.firsts[-1]) * SORT_BYTES // max(memory_bytes, 1), 0).bit_length()
        for part in range(1 << bits):
            keys, rows = self._part(column, part, bits)
            order = np.argsort(keys)
            keys = keys[order]
            is_same = np.concatenate([[False], keys[1:] == keys[:-1], [False]])
            is_shared = is_same[1:] | is_same[:-1]
            keys, rows = keys[is_shared[: len(keys)]], rows[order[is_shared[: len(keys)]]]
            ties = self._of(tie, rows)
            order = np.lexsort((rows, ties, keys))
            yield keys[order], rows[order], ties[order]

    def _part(self, column: int, part: int, bits: int) -> tuple[U64, I64]:
        """The keys of a column whose highest bits are the number `part`, and their rows."""
        keys, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for index, first in enumerate(self.firsts[:-1]):
            found = self._column(index, column)
            is_own = found != 0
            if bits:
                is_own &= (found >> np.uint64(64 - bits)) == part
            keys.append(found[is_own])
            rows.append(np.flatnonzero(is_own) + first)
        return np.concatenate(keys), np.concatenate(rows)

    def _of(self, column: int, rows: I64) -> U64:
        """The keys of some rows in a column."""
        order = np.argsort(rows)
        cuts = np.searchsorted(rows[order], self.firsts)
        found = np.zeros(len(rows), np.uint64)
        for index, first in enumerate(self.firsts[:-1]):
            places = order[cuts[index] : cuts[index + 1]]
            if len(places):
                found[places] = self._column(index, column)[rows[places] - first]
        return found

    def _column(self, index: int, column: int) -> U64:
        count = int(self.firsts[index + 1] - self.firsts[index])
        return np.fromfile(self.files[index], np.uint64, count, offset=8 * column * count)
