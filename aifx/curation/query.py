"""`aifx data query`: rows of a version by SQL."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.errors import UsageError
from aifx.core.files import replacing
from aifx.curation.shards import records_of
from aifx.curation.sql import open_selection
from aifx.data.datasets import check_own_rows
from aifx.data.row_writers import WRITERS
from aifx.data.versions import Version

BATCH_ROWS = 1 << 14
FORMATS = ("csv", "jsonl", "parquet")


@dataclass(frozen=True)
class QueryResult:
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
class QueryFile:
    """The document of `aifx data query --output --json`."""

    reference: str
    output: str
    rows: int
    size_bytes: int


def query_rows(version: Version, sql: str, most: int, memory_bytes: int) -> QueryResult:
    """The first rows of a SELECT over the table `data`. Raises UsageError for SQL that cannot be run."""
    with _selected(version, sql, memory_bytes) as relation:
        rows = relation.limit(most + 1).fetchall()
        columns = dict(zip(relation.columns, map(str, relation.types), strict=True))
    shown = tuple(tuple(map(_shown, row)) for row in rows[:most])
    return QueryResult(version.reference, columns, shown, len(rows) > most)


def query_to_file(version: Version, sql: str, output: Path, memory_bytes: int) -> QueryFile:
    """Write all rows of a SELECT, a batch at a time. Raises UsageError, OSError."""
    format = output_format(output)
    with _selected(version, sql, memory_bytes) as relation, replacing(output) as stream:
        reader = relation.to_arrow_reader(BATCH_ROWS)
        count = _write_parquet(reader, stream) if format == "parquet" else _write_records(reader, stream, format)
    return QueryFile(version.reference, str(output), count, output.stat().st_size)


def output_format(path: Path) -> str:
    """The format that the file's extension names. Raises UsageError."""
    format = path.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        why = f"rows are written as {', '.join(f'.{one}' for one in FORMATS)}"
        raise UsageError(
            f"--output {path}: no writer for {path.suffix or 'a name without extension'}", why, "--output rows.jsonl"
        )
    if path.is_dir():
        raise UsageError(
            f"--output {path} is a directory", "rows are written to one file", f"--output {path}/rows.jsonl"
        )
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: no folder {path.parent}", "", f"mkdir -p {path.parent}")
    return format


@contextmanager
def _selected(version: Version, sql: str, memory_bytes: int) -> Iterator[Any]:
    check_own_rows(version.manifest, "aifx data query")
    with open_selection(version, sql, memory_bytes) as relation:
        yield relation


def _shown(value: Any) -> Any:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes | bytearray | memoryview) else value


def _write_parquet(reader: Any, stream: Any) -> int:
    from pyarrow import parquet

    count = 0
    with parquet.ParquetWriter(stream, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            count += len(batch)
    return count


def _write_records(reader: Any, stream: Any, format: str) -> int:
    writer = WRITERS[format](stream)
    count = 0
    for batch in reader:
        writer.write([_plain(record) for record in records_of(batch)])
        count += len(batch)
    writer.close()
    return count


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in record.items()
    }
