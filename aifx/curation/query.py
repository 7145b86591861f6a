"""`aifx data query`: rows of a version by SQL, in a process of its own.

DuckDB looks for an interrupt between its own steps, and a single one may take hours; nor does it count all of its
memory. So the process that runs it can be killed, and the kernel refuses it more memory than it may use.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.calls import generated
from aifx.core.environment import environment
from aifx.core.files import replacing
from aifx.core.limits import limit_memory
from aifx.core.results import Result
from aifx.data.row_writers import RowWriter, escape_formula, flat, output_format
from aifx.data.versions.catalog import check_own_rows
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import records_of, return_memory
from aifx.data.versions.sql import batches_of, not_enough_memory, open_selection

BATCH_ROWS = 1 << 11
GROUP_BYTES = 16 << 20
"""Bytes of the rows of a row group of Parquet."""

PARENT_BYTES = 64 << 20
"""Memory of the command, which waits for the query, without the rows that it returns (50 MB measured)."""

STACKS_BYTES = 64 << 20
"""Memory that DuckDB's first threads and allocator reserve and do not use (56 MB measured, two threads)."""


@dataclass(frozen=True)
class QueryResult(Result):
    """The document of `aifx data query --json`.

    Attributes:
        columns: DuckDB's type by column.
        rows: the values of each, in the order of the columns.
        is_cut: whether there are more rows than these.
    """

    reference: str
    columns: Mapping[str, str]
    rows: tuple[tuple[Any, ...], ...]
    is_cut: bool


@dataclass(frozen=True)
class QueryFile(Result):
    """The document of `aifx data query --output --json`."""

    reference: str
    output: str
    rows: int
    size_bytes: int


def query_rows(version: Version, sql: str, most: int, memory_bytes: int) -> QueryResult:
    """The first rows of a SELECT over the table `data`. Raises UsageError for SQL that cannot be run, EnvironmentFault.

    Args:
        memory_bytes: of this process and the one that runs the query, without the rows that are returned.
    """
    with _apart(selected_rows, version, sql, most, memory_bytes=memory_bytes) as found:
        result: QueryResult = next(found)
    return result


def query_to_file(version: Version, sql: str, output: Path, memory_bytes: int) -> QueryFile:
    """Write all rows of a SELECT, some at a time. Raises UsageError, EnvironmentFault, OSError."""
    format, count = output_format(output, "rows"), 0
    with _apart(file_parts, version, sql, format, memory_bytes=memory_bytes) as parts, replacing(output) as stream:
        for rows, part in parts:
            stream.write(part)
            count += rows
    return QueryFile(version.reference, str(output), count, output.stat().st_size)


def selected_rows(version: Version, sql: str, most: int, memory_bytes: int) -> Iterator[QueryResult]:
    """The one result of `query_rows`, in this process. `memory_bytes` are DuckDB's."""
    with open_selection(version, sql, memory_bytes) as relation:
        rows = relation.limit(most + 1).fetchall()
        columns = dict(zip(relation.columns, map(str, relation.types), strict=True))
    values = tuple(tuple(map(_displayed, row)) for row in rows[:most])
    yield QueryResult(version.reference, columns, values, len(rows) > most)


def file_parts(version: Version, sql: str, format: str, memory_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The bytes of a file with all rows of a SELECT, in parts, with the number of rows that each part adds."""
    from pyarrow import parquet

    sink = io.BytesIO()
    with open_selection(version, sql, memory_bytes) as relation:
        reader = relation.to_arrow_reader(BATCH_ROWS)
        is_parquet = format == "parquet"
        writer: Any = parquet.ParquetWriter(sink, reader.schema) if is_parquet else RowWriter(sink, format)
        for rows in _parts(reader, GROUP_BYTES if is_parquet else 0):
            writer.write(rows if is_parquet else _records(rows, format))
            yield len(rows), _taken(sink)
        writer.close()
        yield 0, _taken(sink)


@contextmanager
def _apart(
    function: Callable[..., Iterator[Any]], version: Version, *arguments: Any, memory_bytes: int
) -> Generator[Iterator[Any]]:
    """Run a function in a process of its own, whose temporary files end with it."""
    check_own_rows(version.manifest, "aifx data query")
    call = function, (version, *arguments), memory_bytes - PARENT_BYTES
    with (
        tempfile.TemporaryDirectory(prefix="aifx-query-") as folder,
        environment({"TMPDIR": folder}),
        generated(_within_memory, *call, begin=return_memory) as found,
    ):
        yield found


def _within_memory(function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], left: int) -> Iterator[Any]:
    """In the process of the query: give DuckDB what the rest of the process leaves it."""
    import duckdb
    from pyarrow import parquet  # noqa: F401  # as much as possible is loaded before its memory is counted

    free = limit_memory(left, STACKS_BYTES)
    try:
        yield from function(*arguments, free * 3 // 4)
    except (MemoryError, duckdb.OutOfMemoryException) as e:
        raise not_enough_memory(e) from None


def _displayed(value: Any) -> Any:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes | bytearray | memoryview) else value


def _parts(reader: Any, least_bytes: int) -> Iterator[Any]:
    """The batches of a reader as tables of as many bytes or more. Raises duckdb.Error."""
    import pyarrow as pa

    batches: list[Any] = []
    for batch in batches_of(reader):
        batches.append(batch)
        if sum(each.nbytes for each in batches) >= least_bytes:
            yield pa.Table.from_batches(batches)
            batches = []
    if batches:
        yield pa.Table.from_batches(batches)


def _taken(sink: io.BytesIO) -> bytes:
    part = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return part


def _records(rows: Any, format: str) -> list[dict[str, Any]]:
    """Rows for a writer. No cell of CSV is a formula, nor is a column's name."""
    records = [{name: _plain(value) for name, value in record.items()} for record in records_of(rows)]
    if format != "csv":
        return records
    return [{escape_formula(name): escape_formula(value) for name, value in flat(record).items()} for record in records]


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
