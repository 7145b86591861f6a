"""What is kept about a data set whose training rows are compared with its own validation and test rows.

Its shards but a few were there before, so that only new rows are compared with all held-out rows, and new held-out rows
with all others. In the folder of the data set's sketches, by the SHA-256 of a shard:

    held-out/<shard>.parquet        its validation and test rows
    fingerprints/<shard>.parquet    of its training rows, in order: `fingerprint`, and `row`, the row's number
    overlaps-<settings>.parquet     decisions about the shards of the version that was compared last
"""

# Rows that were there before are not read again. Fingerprints find those that may share 13 words with a new held-out
# text ("Winnowing: Local Algorithms for Document Fingerprinting", Schleimer, Wilkerson and Aiken 2003): of each six
# runs of 8 words that follow each other, the smallest hash is one. A run of 13 words has six such runs, so that two
# texts that share it share a fingerprint. Two of seven hashes are fingerprints. The words of the rows that are found
# are then compared as those of a new row.

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import Table, parquet

from aifx.core.errors import DataError
from aifx.core.files import replacing
from aifx.curation.words import I64, Words, find_words, group_starts, spread, word_runs
from aifx.data.names import ROW, SOURCE, SPLIT
from aifx.data.splits import Split
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_parts, read_shard

RUN_WORDS = 13
"""Words of a run. GPT-3 compares 13-grams (Brown et al. 2020, appendix C)."""

HELD_OUT: tuple[Split, ...] = ("validation", "test")
_PART_WORDS = 8
_WINDOW = RUN_WORDS - _PART_WORDS + 1
_DIGITS = np.uint64(16)
"""Bits of a hash that a fingerprint is without, so that it takes less space."""


def is_held_out(rows: Table) -> np.ndarray:
    return np.isin(rows[SPLIT].to_numpy(), HELD_OUT)


def fingerprints(words: Words) -> tuple[I64, I64]:
    """The fingerprints of texts, and the number of the text that each is of."""
    runs = word_runs(words, _PART_WORDS, whole=False)
    least = runs.hashes.copy()
    for place in range(1, min(_WINDOW, len(least))):
        np.minimum(least[:-place], runs.hashes[place:], out=least[:-place])
    windows = np.maximum(np.diff(runs.firsts) - _WINDOW + 1, 0)
    found = (least[spread(runs.firsts[:-1], windows)] >> _DIGITS).view(np.int64)
    texts = np.repeat(np.arange(len(windows)), windows)
    is_new = group_starts(found) | group_starts(texts)
    return found[is_new], texts[is_new]


def write_fingerprints(file: Path, parts: Sequence[tuple[I64, I64]]) -> None:
    """Write the fingerprints of a shard's rows, each with the number of its row."""
    nothing = np.zeros(0, np.int64)
    found, rows = (np.concatenate(column) for column in zip((nothing, nothing), *parts, strict=True))
    order = np.argsort(found, kind="stable")
    table = pa.table({"fingerprint": found[order], "row": rows[order]})
    encoding = dict.fromkeys(table.column_names, "DELTA_BINARY_PACKED")
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as stream:
        parquet.write_table(table, stream, use_dictionary=False, column_encoding=encoding, write_statistics=False)


def rows_with(file: Path, wanted: I64) -> I64 | None:
    """The numbers of a shard's rows that have one of some fingerprints; None if those of the shard are not there.

    Args:
        wanted: in order.
    """
    if (kept := read_kept(file)) is None:
        return None
    found = kept["fingerprint"].to_numpy()
    begins, ends = (np.searchsorted(found, wanted, side) for side in ("left", "right"))
    return np.unique(kept["row"].to_numpy()[spread(begins, ends - begins)])


def read_kept(file: Path) -> Table | None:
    """A table that was kept; None if it cannot be read, since it can be had again."""
    try:
        return read_shard(file) if file.exists() else None
    except DataError:
        return None


@dataclass(frozen=True)
class HeldOutRows:
    """The validation and test rows of a version, kept by shard.

    Attributes:
        folder: of the sketches.
    """

    version: Version
    folder: Path

    def of_shard(self, shard: int) -> Table:
        """`_row`, `_source` and `text` of the rows."""
        file = self.folder / "held-out" / f"{self.version.manifest.shards[shard].sha256}.parquet"
        if (kept := read_kept(file)) is not None:
            return kept
        columns = [name for name in (ROW, SOURCE, "text", SPLIT) if name in self.version.manifest.columns]
        parts = read_parts(self.version.shards[shard], columns)
        rows = pa.concat_tables([part.filter(pa.array(is_held_out(part))) for part in parts]).drop_columns(SPLIT)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            parquet.write_table(rows, stream, compression="zstd")
        return rows

    def fingerprint_file(self, shard: int) -> Path:
        """The file with the fingerprints of a shard's training rows, which need not be there."""
        return self.folder / "fingerprints" / f"{self.version.manifest.shards[shard].sha256}.parquet"

    def shards_with_rows(self) -> dict[str, int]:
        """The numbers of the shards that have such rows, by SHA-256."""
        shards = self.version.manifest.shards
        return {shard.sha256: number for number, shard in enumerate(shards) if len(self.of_shard(number))}

    def fingerprints_of(self, shards: Iterable[int]) -> I64:
        """All fingerprints of the rows of some shards, in order."""
        parts = [fingerprints(find_words(self.of_shard(shard)["text"]))[0] for shard in shards]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


@dataclass(frozen=True)
class Compared:
    """Decisions about the shards of a version, and the held-out rows with which they were compared.

    Attributes:
        held_out: SHA-256 of the shards that had held-out rows, in order.
        shards: SHA-256 of all shards that were compared.
        decisions: of their rows, with the `shard`, and with `row`, the row's number in it.
    """

    held_out: tuple[str, ...]
    shards: frozenset[str]
    decisions: Table

    def of_shard(self, shard: str) -> Table:
        return self.decisions.filter(pc.equal(self.decisions["shard"], shard)).drop_columns("shard")

    def still_hold(self, held_out: Iterable[str]) -> bool:
        """Whether the decisions can only have changed for rows that are like new held-out rows.

        An earlier held-out row that is gone, or comes after others now, may be the twin of any row.
        """
        known = set(self.held_out)
        return [one for one in held_out if one in known] == [*self.held_out]


def read_compared(file: Path) -> Compared | None:
    """What was compared last; None if that is not known."""
    if (table := read_kept(file)) is None:
        return None
    facts = json.loads((table.schema.metadata or {}).get(b"compared", b"null"))
    return None if facts is None else Compared(tuple(facts["held_out"]), frozenset(facts["shards"]), table)


def write_compared(file: Path, held_out: Iterable[str], decisions: dict[str, Table]) -> None:
    """Keep the decisions about the shards of a version, by the shard's SHA-256."""

    def tables() -> Iterator[Table]:
        for shard, rows in decisions.items():
            yield rows.append_column("shard", pa.array([shard] * len(rows), pa.string()))

    facts = {"held_out": [*held_out], "shards": [*decisions]}
    table = pa.concat_tables(tables()).replace_schema_metadata({"compared": json.dumps(facts)})
    with replacing(file) as stream:
        parquet.write_table(table, stream, compression="zstd")
