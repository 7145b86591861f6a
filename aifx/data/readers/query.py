"""Rows of a database's query, which `databases.spool` put on the disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aifx.data.readers.base import BadRow, Batch, ReadOptions, batch_of, split_valid

if TYPE_CHECKING:
    from pyarrow import Field, RecordBatch, Schema

    from aifx.data.readers.sources import SourceFile

CHECK = "_check"
"""A column of the rows on their way: a hash of the row, or a negative number for a row that cannot be taken."""

REASONS = b"aifx:reasons"
"""Metadata of the rows: why some cannot be taken, as a list in JSON. The reason of a row is at `-1 - CHECK`."""

KEY = b"aifx:key"
"""Metadata of the rows: the column of the key, or ""."""

TYPE = b"aifx:type"
"""Key of a text column's metadata: the type of Arrow that its values become."""


def find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The columns of the query."""
    import pyarrow as pa

    with open(file.location, "rb") as opened, pa.ipc.open_stream(opened) as stream:
        return pa.schema([_as_stored(field) for field in stream.schema if field.name != CHECK])


def read(file: SourceFile, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows; one that PostgreSQL could not give is bad, and has its number."""
    import pyarrow as pa

    with pa.memory_map(file.location) as mapped, pa.ipc.open_stream(mapped) as stream:
        first = 0
        for batch in stream:
            columns = [batch.column(field.name).cast(field.type) for field in schema]
            found = batch_of(pa.table(columns, schema=schema), first)
            yield _without_bad(found, batch, first, options)
            first += len(batch)


def _without_bad(found: Batch, batch: RecordBatch, first: int, options: ReadOptions) -> Batch:
    import pyarrow.compute as pc

    if CHECK in batch.schema.names and pc.any(marked := pc.less(batch.column(CHECK), 0)).as_py():
        checks = batch.column(CHECK)
        metadata = batch.schema.metadata
        reasons, key = json.loads(metadata[REASONS]), metadata[KEY].decode()
        bad = []
        for index in pc.indices_nonzero(marked).to_pylist():
            place = f"{key} = {batch.column(key)[index]}: " if key else ""
            bad.append(BadRow(first + index + 1, place + reasons[-1 - checks[index].as_py()]))
        keep = pc.invert(marked)
        found = Batch(found.rows.filter(keep), found.numbers.filter(keep), bad)
    if options.text_column is None:
        return found
    rows, numbers = found.rows, found.numbers

    def raw(index: int) -> tuple[int, bytes]:
        return numbers[index].as_py() + 1, json.dumps(rows.slice(index, 1).to_pylist()[0], default=str).encode()

    return split_valid(found, options.text_column, raw)


def _as_stored(field: Field) -> Field:
    import pyarrow as pa

    match = re.fullmatch(r"decimal128\((\d+), (\d+)\)", (field.metadata or {}).get(TYPE, b"").decode())
    return pa.field(field.name, pa.decimal128(int(match[1]), int(match[2])) if match else field.type)
