"""Files in the format Parquet, and the texts in a column of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from aifx.core.digests import size_and_sha256
from aifx.core.errors import DataError, did_you_mean
from aifx.core.os_errors import first_line
from aifx.data.readers.encodings import DECODE_HANDLERS, DecodeErrors, FileScan, TextFile, reading, undecodable

BUFFER_BYTES = 1 << 20
"""Of a column that are read at a time; otherwise a whole row group of it is, as large as its writer made it."""


def read_column(file: TextFile, text_field: str, errors: DecodeErrors) -> Iterator[object]:
    """The values of the column `text_field`, in order.

    Raises DataError if the file or the column cannot be read, or a text is not UTF-8 and `errors` is strict.
    """
    for column in _columns(file, text_field):
        if _is_valid(column):
            yield from column.to_pylist()
            continue
        try:
            handler = DECODE_HANDLERS[errors]
            yield from [value if value is None else value.decode("utf-8", handler) for value in _raw(column)]
        except UnicodeDecodeError:
            raise undecodable({file: scan_column(file, text_field)}) from None


def read_batches(path: Path, name: str, columns: Sequence[str]) -> Iterator[Any]:
    """Columns of a file in pyarrow.RecordBatches of 1,024 rows, so that memory holds one row group at a time.

    Raises DataError if the file cannot be read or lacks a column.
    """
    with open_parquet(path, name) as table:
        for column in columns:
            _column_index(table, name, column)
        yield from table.iter_batches(batch_size=1024, columns=list(columns), use_threads=False)


def column_bytes(path: Path, name: str, column: str) -> int:
    """Bytes of a column, uncompressed, as the file's index has them. Raises DataError."""
    with open_parquet(path, name) as table:
        index = _column_index(table, name, column)
        groups = (table.metadata.row_group(group) for group in range(table.metadata.num_row_groups))
        return sum(group.column(index).total_uncompressed_size for group in groups)


@lru_cache(maxsize=1)
def _whole_column(path: Path, column: str) -> Any:
    with open_parquet(path, str(path)) as table:
        return table.read(columns=[column], use_threads=False).column(0)


def read_cell(path: Path, column: str, row: int) -> Any:
    """A value of a file. The column of the file that was read last is kept, so that values in order cost little.

    Raises DataError.
    """
    return _whole_column(path, column)[row].as_py()


def _column_index(table: Any, name: str, column: str) -> int:
    names: list[str] = table.schema_arrow.names
    if column not in names:
        raise DataError(f"{name}: no column {column!r}", did_you_mean(column, names), "aifx config keys data")
    return names.index(column)


def scan_column(file: TextFile, text_field: str) -> FileScan:
    """Read a file once: the digest of its bytes, and the bytes in texts that are not UTF-8."""
    with reading(file), open(file.path, "rb") as stream:
        num_bytes, digest = size_and_sha256(stream)
    count = row = 0
    where = why = ""
    for column in _columns(file, text_field):
        for number, value in enumerate([] if _is_valid(column) else _raw(column), row + 1):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                if not count:
                    where = f": row {number} of column {text_field!r}"
                    why = f"byte {error.start} of it is 0x{error.object[error.start]:02x} ({error.reason})"
                count += len(error.object) - len(error.object.decode("utf-8", "ignore").encode())
        row += len(column)
    return FileScan(digest, num_bytes, count, where, why, ("utf-8",))


def _columns(file: TextFile, text_field: str) -> Iterator[Any]:
    """The column in batches of rows."""
    with reading(file), open_parquet(file.path, file.name) as table:
        columns = table.schema_arrow.names
        if text_field not in columns:
            why = did_you_mean(text_field, columns)
            raise DataError(f"{file.name}: no column {text_field!r}", why, "aifx train --set data.text_field=NAME")
        for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
            yield batch.column(0)


def _is_valid(column: Any) -> bool:
    """Whether all of its texts are UTF-8, which Arrow itself does not check when it reads."""
    try:
        column.validate(full=True)
    except ValueError:  # ArrowInvalid
        return False
    return True


def _raw(column: Any) -> list[bytes | None]:
    """The bytes of its texts."""
    values: list[bytes | None] = column.cast("large_binary").to_pylist()
    return values


@contextmanager
def open_parquet(source: Path | IO[bytes], name: str) -> Iterator[Any]:
    """The pyarrow.parquet.ParquetFile of `source`. Raises DataError, also for what is read of it in the block."""
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        yield parquet.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except FileNotFoundError:
        raise DataError(f"{name} is missing", "no such file", "restore it from a copy, or make it again") from None
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system; pyarrow also has OSErrors for damaged pages, without a number
        what = f"{name}: not a Parquet file that can be read"
        raise DataError(what, first_line(error), "write it again, or leave it out") from None
