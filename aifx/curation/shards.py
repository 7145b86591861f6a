"""Parquet files of a version: their bytes depend on their rows alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aifx.core.files import replacing
from aifx.core.os_errors import naming
from aifx.data.parquet import open_parquet
from aifx.data.versions import ROW, ShardFile

if TYPE_CHECKING:
    from pyarrow import Table

SHARD_BYTES = 64 << 20
"""Rows in memory that fill a shard: work for a few seconds. A process holds several times as much."""

ROW_GROUP_ROWS = 1 << 16
COMPRESSION = "lz4"
BULK = ("text", "image")
"""Columns that are neither compressed nor put into a dictionary: LZ4 takes half a second per 100 MB of text, and saves
a third of the bytes."""


def dropped_rows(rows: Any, rules: Sequence[str] | Any, twins: Any = None) -> Table:
    """The table of an `Outcome` for dropped rows: their ids, the rule that dropped each, and its twin or null."""
    import pyarrow as pa

    twins = pa.nulls(len(rows), pa.string()) if twins is None else twins
    return pa.table([_strings(rows), _strings(rules), _strings(twins)], names=[ROW, "rule", "twin"])


def _strings(values: Any) -> Any:
    """Strings as a list or in any Arrow type, such as a dictionary, as an Arrow array of plain strings."""
    import pyarrow as pa

    return values.cast(pa.string()) if hasattr(values, "cast") else pa.array(values, pa.string())


def write_shard(path: Path, name: str, rows: Table) -> ShardFile:
    """Put rows at `path` / `name`, whole or not at all. Raises OSError."""
    from pyarrow import parquet

    target = path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        hashing = _Hashing(file)
        with naming(target):
            parquet.write_table(
                rows.replace_schema_metadata(None),
                hashing,
                compression={name: "none" if name in BULK else COMPRESSION for name in rows.column_names},
                use_dictionary=[name for name in rows.column_names if name not in (*BULK, ROW)],
                row_group_size=ROW_GROUP_ROWS,
                write_statistics=[ROW] if ROW in rows.column_names else False,
                store_schema=False,
            )
    return ShardFile(name, hashing.digest.hexdigest(), len(rows), hashing.bytes)


def read_shard(path: Path, columns: Sequence[str] | None = None) -> Table:
    """The rows of a shard. Raises DataError if it cannot be read."""
    with open_parquet(path, str(path)) as file:
        return file.read(columns=list(columns) if columns is not None else None, use_threads=False)


def columns_of(rows: Table) -> dict[str, str]:
    """Arrow type by column. Parquet calls the items of a list "element", and Arrow "item": it is the same type."""
    return {field.name: str(field.type).replace("list<element: ", "list<item: ") for field in rows.schema}


class _Hashing:
    """A stream that hashes what it writes."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Leave the file to `replacing`, which flushes it."""

    def tell(self) -> int:
        return self.bytes

    def close(self) -> None:
        """Leave the file to `write_shard`."""
