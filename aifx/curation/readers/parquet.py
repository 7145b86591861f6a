"""Parquet files: their columns as they are."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.errors import DataError
from aifx.core.os_errors import naming
from aifx.curation.readers.base import BLOCK_BYTES, Batch, DamagedFile, ReadOptions, batch_of, split_valid
from aifx.curation.readers.streams import open_bytes
from aifx.data.parquet import open_parquet

if TYPE_CHECKING:
    from pyarrow import DataType, Schema

MOST_ROWS = 1 << 16
"""Of a batch."""


def find_schema(path: str, compression: str, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The columns of a file, with plain types in place of dictionaries and large ones. Raises DamagedFile."""
    import pyarrow as pa

    with _opened(path, compression, options) as file:
        names = Counter(file.schema_arrow.names)
        if twice := [name for name, count in names.items() if count > 1]:
            raise DamagedFile(f"it has two columns {twice[0]!r}")
        return pa.schema([(field.name, _plain(field.type)) for field in file.schema_arrow])


def read(path: str, compression: str, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows of a file. Raises DamagedFile."""
    import pyarrow as pa

    with _opened(path, compression, options) as file:
        first = 0
        for rows in file.iter_batches(batch_size=_batch_rows(file.metadata), use_threads=False):
            table = pa.Table.from_batches([rows]).cast(schema)

            def raw(index: int, first: int = first, table: Any = table) -> tuple[int, bytes]:
                row = {
                    name: column[index].as_py() if not pa.types.is_string(column.type) else _text(column, index)
                    for name, column in zip(table.column_names, table.columns, strict=True)
                }
                return first + index + 1, json.dumps(row, default=str, ensure_ascii=False).encode()

            yield split_valid(batch_of(table, first), options.text_column, raw)
            first += len(rows)


def _text(column: Any, index: int) -> str | None:
    import pyarrow as pa

    data = column.slice(index, 1).cast(pa.binary())[0].as_py()
    return None if data is None else data.decode(errors="backslashreplace")


def _batch_rows(metadata: Any) -> int:
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return int(max(64, min(MOST_ROWS, BLOCK_BYTES * metadata.num_rows // max(size, 1))))


@contextmanager
def _opened(path: str, compression: str, options: ReadOptions) -> Iterator[Any]:
    with open(path, "rb") as packed, tempfile.TemporaryFile() as unpacked:  # pyarrow opens no path but UTF-8
        if compression:
            with open_bytes(path, compression, options) as stream:
                while data := stream.read(BLOCK_BYTES):
                    with naming(Path(tempfile.gettempdir())):
                        unpacked.write(data)
            unpacked.seek(0)
        try:
            with open_parquet(unpacked if compression else packed, path) as file:
                yield file
        except DataError as e:
            raise DamagedFile(f"not a Parquet file that can be read: {e.why}") from None


def _plain(kind: DataType) -> DataType:
    """The type without the ways of Arrow to hold the same values."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    return _plain(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind
