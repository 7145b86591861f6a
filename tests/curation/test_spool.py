"""Rows of a database that were read by a call before: only undamaged ones stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from aifx.curation.databases import sources
from aifx.curation.databases.query import Part, Query, Snapshot, parse_database_url
from aifx.data.readers.columnar import CHECK

ROWS, BATCH = 60, 10
QUERY = Query(parse_database_url("postgresql://127.0.0.1/shop"), "SELECT * FROM t", "id")


class Numbers(Snapshot):
    """A table with the keys from 1 to ROWS, whose rows have their keys as hashes."""

    schema = pa.schema([("id", pa.int64()), (CHECK, pa.int64())])

    def read(self, after: str | None) -> Iterator[pa.RecordBatch]:
        for first in range(int(after or 0) + 1, ROWS + 1, BATCH):
            ids = list(range(first, min(first + BATCH, ROWS + 1)))
            yield pa.record_batch([ids, ids], schema=self.schema)

    def has_part(self, part: Part) -> bool:
        return True  # a database cannot compare a key that is damaged


@pytest.mark.parametrize("name", [sources.ROWS, sources.PARTS])
def test_damaged_rows_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sources, "PART_BYTES", 1)  # each batch is a part
    sources.Spool(tmp_path, QUERY).fetch(Numbers())
    files = {path: path.read_bytes() for path in (tmp_path / sources.ROWS, tmp_path / sources.PARTS)}
    whole = sources.Spool(tmp_path, QUERY).fetch(Numbers())
    assert (whole.rows, whole.kept) == (ROWS, ROWS)
    good, kept = files[tmp_path / name], set()
    damaged = [good[:size] for size in range(0, len(good), 211)]
    damaged += [good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(0, len(good), 37)]
    for data in damaged:
        for path, content in files.items():
            path.write_bytes(content)
        (tmp_path / name).write_bytes(data)
        found = sources.Spool(tmp_path, QUERY).fetch(Numbers())
        assert found.rows == ROWS
        assert found.path.read_bytes() == files[tmp_path / sources.ROWS]
        kept.add(found.kept)
    assert len(kept) > 3  # what is before the damage stays
