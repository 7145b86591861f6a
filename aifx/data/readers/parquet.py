"""Parquet files: their columns as they are, and the texts in one of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aifx.core.calls import advance
from aifx.core.digests import size_and_sha256
from aifx.core.errors import DataError, did_you_mean
from aifx.core.os_errors import first_line, naming
from aifx.data.readers import streams
from aifx.data.readers.arrow import pa, pc, pq
from aifx.data.readers.base import (
    BLOCK_BYTES,
    ROW_BYTES,
    Batch,
    DamagedFile,
    ReadOptions,
    batch_of,
    rows_not_utf8,
    split_valid,
)
from aifx.data.readers.encodings import DECODE_HANDLERS, DecodeErrors, FileScan, undecodable
from aifx.data.readers.streams import open_bytes

if TYPE_CHECKING:
    from aifx.data.readers.sources import SourceFile

BUFFER_BYTES = 1 << 20
"""Bytes of a column that are read at a time. By default pyarrow reads a row group of it, which may be of any size."""

MOST_ROWS = 1 << 16
MOST_BYTES = 4 * ROW_BYTES
"""The limits of a batch."""


@contextmanager
def open_parquet(source: Path | IO[bytes], name: str) -> Iterator[Any]:
    """The pyarrow.parquet.ParquetFile of `source`. Raises DataError, also for what is read of it in the block."""
    try:
        yield pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except FileNotFoundError:
        raise DataError(f"{name} is missing", "no such file", "restore it from a copy, or make it again") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system; pyarrow also has OSErrors for damaged pages, without a number
        what = f"{name}: not a Parquet file that can be read"
        raise DataError(what, first_line(error), "write it again, or leave it out") from None


@contextmanager
def seekable(stream: Any, compression: str) -> Iterator[IO[bytes]]:
    """The bytes of a stream, in a temporary file if they are decompressed, which takes too long for each place."""
    if not compression:
        yield stream
        return
    with tempfile.TemporaryFile() as unpacked:
        while data := stream.read1(BLOCK_BYTES):
            with naming(Path(tempfile.gettempdir())):
                unpacked.write(data)
        unpacked.seek(0)
        yield unpacked


def batches_of(file: SourceFile, columns: Sequence[str] | None = None, rows: int = 1024) -> Iterator[Any]:
    """As `read_batches`, also of a compressed file."""
    with file.open() as stream, seekable(stream, file.compression) as content:
        yield from read_batches(content, file.name, columns, rows)


def read_batches(
    source: Path | IO[bytes], name: str, columns: Sequence[str] | None = None, rows: int = 1024
) -> Iterator[Any]:
    """Columns of a file in pyarrow.RecordBatches of so many rows, so that memory holds one row group at a time.

    Args:
        columns: by default all.

    Raises DataError if the file cannot be read or lacks a column.
    """
    with open_parquet(source, name) as table:
        for column in columns or ():
            _column_index(table, name, column)
        yield from table.iter_batches(batch_size=rows, columns=columns, use_threads=False)


def column_bytes(path: Path, name: str, column: str) -> int:
    """Bytes of a column, uncompressed, as the file's index has them. Raises DataError."""
    with open_parquet(path, name) as table:
        index = _column_index(table, name, column)
        groups = (table.metadata.row_group(group) for group in range(table.metadata.num_row_groups))
        return sum(group.column(index).total_uncompressed_size for group in groups)


@lru_cache(maxsize=1)
def read_column(path: Path, column: str) -> Any:
    """A column of a file. The last is kept, so that reading its values one by one costs little. Raises DataError."""
    with open_parquet(path, str(path)) as table:
        return table.read(columns=[column], use_threads=False).column(0)


def _column_index(table: Any, name: str, column: str) -> int:
    names: list[str] = table.schema_arrow.names
    if column not in names:
        hint = "aifx config keys data    (data.text_field names the column of texts)"
        raise DataError(f"{name}: no column {column!r}", did_you_mean(column, names), hint)
    return names.index(column)


def read_texts(file: SourceFile, text_field: str, errors: DecodeErrors) -> Iterator[object]:
    """The values of the column `text_field`, in order.

    Raises DataError if the file or the column cannot be read, or a text is not UTF-8 and `errors` is strict.
    """
    for batch in batches_of(file, [text_field]):
        column = batch.column(0)
        if not rows_not_utf8(column):
            yield from column.to_pylist()
            continue
        try:
            handler = DECODE_HANDLERS[errors]
            yield from [value if value is None else value.decode("utf-8", handler) for value in _encoded(column)]
        except UnicodeDecodeError:
            raise undecodable({file: scan_texts(file, text_field)}) from None


def scan_texts(file: SourceFile, text_field: str) -> FileScan:
    """Read a file once: the digest of its bytes, and the bytes in texts that are not UTF-8."""
    with file.open() as stream:
        num_bytes, digest = size_and_sha256(stream)
    count = first = 0
    where = why = ""
    for batch in batches_of(file, [text_field]):
        column = batch.column(0)
        encoded = _encoded(column) if (rows := rows_not_utf8(column)) else []
        for row in rows:
            try:
                (encoded[row] or b"").decode()
            except UnicodeDecodeError as error:
                if not count:
                    where = f": row {first + row + 1} of column {text_field!r}"
                    why = f"byte {error.start} of it is 0x{error.object[error.start]:02x} ({error.reason})"
                count += len(error.object) - len(error.object.decode("utf-8", "ignore").encode())
        first += len(column)
    return FileScan(digest, num_bytes, count, where, why, ("utf-8",))


def _encoded(column: Any) -> Any:
    """The bytes of its texts, each None for a null."""
    return column.cast("large_binary").to_pylist()


def find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> pa.Schema:
    """The columns of a file, with plain types in place of dictionaries and large ones. Raises DamagedFile."""
    with _opened(file, options) as (table, _):
        names = Counter(table.schema_arrow.names)
        if twice := [name for name, count in names.items() if count > 1]:
            raise DamagedFile(f"it has two columns {twice[0]!r}")
        return pa.schema([(field.name, _plain(field.type)) for field in table.schema_arrow])


def read(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows of a file. Raises DamagedFile, also for a file that expands beyond the limit."""
    with _opened(file, options) as (opened, content):
        file_bytes = os.stat(file.location).st_size
        limit = max(streams.SMALL_EXPANSION, file_bytes * options.max_expansion)
        if _group_bytes(opened.metadata) > limit:
            raise streams.expanded(options.max_expansion)
        first = size = 0
        for rows in opened.iter_batches(batch_size=_batch_rows(opened, content), use_threads=False):
            table = pa.Table.from_batches([rows]).cast(schema)
            size += table.nbytes
            if not file.compression:  # a compressed one was read when it was unpacked
                advance(file_bytes * len(rows) // max(opened.metadata.num_rows, 1))
            if size > limit:
                raise streams.expanded(options.max_expansion)

            def raw(index: int, first: int = first, table: Any = table) -> tuple[int, bytes]:
                row = {
                    name: _text(column, index) if pa.types.is_string(column.type) else column[index].as_py()
                    for name, column in zip(table.column_names, table.columns, strict=True)
                }
                return first + index + 1, json.dumps(row, default=str, ensure_ascii=False).encode()

            yield split_valid(batch_of(table, first), options.text_column, raw)
            first += len(rows)


def _text(column: Any, index: int) -> str | None:
    data = column.slice(index, 1).cast(pa.binary())[0].as_py()
    return None if data is None else data.decode(errors="backslashreplace")


def _batch_rows(file: Any, content: IO[bytes]) -> int:
    """Rows of a batch: of about BLOCK_BYTES in the file, and within MOST_BYTES whatever values they repeat."""
    size = _group_bytes(file.metadata)
    rows = max(64, min(MOST_ROWS, BLOCK_BYTES * file.metadata.num_rows // max(size, 1)))
    return int(max(1, min(rows, MOST_BYTES // max(_row_bytes(file, content), 1))))


def _group_bytes(metadata: Any) -> int:
    """Bytes of the row groups in their encodings, without compression, as the file's index has them."""
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))


def _row_bytes(file: Any, content: IO[bytes]) -> int:
    """The most bytes that the texts of a row can have: an encoding may store a value once that comes a million times.

    The first rows of each row group are read as numbers into its dictionaries.
    """
    metadata = file.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [file.schema.column(index) for index in range(metadata.num_columns)]
    chunks = [group.column(index) for group in groups for index in range(metadata.num_columns)]
    deltas = {
        chunk.path_in_schema: chunk.total_uncompressed_size
        for chunk in chunks
        if any(encoding.startswith("DELTA") for encoding in chunk.encodings)
    }
    repeated = {chunk.path_in_schema for chunk in chunks if any("DICTIONARY" in name for name in chunk.encodings)}
    texts = [each for each in columns if each.physical_type == "BYTE_ARRAY" and each.path in repeated - {*deltas}]
    fixed = sum(each.length for each in columns if each.physical_type == "FIXED_LEN_BYTE_ARRAY")
    probe = pq.ParquetFile(content, read_dictionary=[each.path for each in texts], buffer_size=streams.COMPRESSED_BLOCK)
    longest = repeats = 0
    for index, group in enumerate(groups):
        # A column of lists has a dictionary only from the first list that is not empty.
        found = [_longest_texts(probe, index, [each.path]) for each in texts if each.max_repetition_level]
        flat = [each.path for each in texts if not each.max_repetition_level]
        longest = max(longest, sum(found) + (_longest_texts(probe, index, flat) if flat else 0))
        values = max(group.column(column).num_values for column in range(metadata.num_columns))
        repeats = max(repeats, -(-values // max(group.num_rows, 1)))
    return int(repeats * (longest + fixed + sum(deltas.values())))


def _longest_texts(probe: Any, group: int, columns: list[str]) -> int:
    """Bytes of the longest values in the dictionaries of columns, one of each."""
    for rows in probe.iter_batches(batch_size=64, row_groups=[group], columns=columns, use_threads=False):
        if found := sum(map(_longest_text, rows.columns)):
            return found
    return 0


def _longest_text(array: Any) -> int:
    if pa.types.is_dictionary(array.type):
        return int(pc.max(pc.binary_length(array.dictionary)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(_longest_text(array.field(index)) for index in range(array.type.num_fields))
    return _longest_text(array.values) if hasattr(array, "values") else 0


@contextmanager
def _opened(file: SourceFile, options: ReadOptions) -> Iterator[tuple[Any, IO[bytes]]]:
    # pyarrow opens no path but UTF-8. Bytes of a file that is not compressed count as progress when rows are read.
    with (
        open_bytes(file, options, is_counted=bool(file.compression)) as stream,
        seekable(stream, file.compression) as content,
    ):
        try:
            with open_parquet(content, file.name) as table:
                yield table, content
        except DataError as e:
            raise DamagedFile(f"not a Parquet file that can be read: {e.why}") from None


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without the ways of Arrow to hold the same values."""
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
