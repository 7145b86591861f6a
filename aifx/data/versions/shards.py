"""Parquet files of a version: their bytes depend on their rows alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from aifx.core.digests import Sha256
from aifx.core.files import replacing
from aifx.core.os_errors import naming
from aifx.data.names import ROW
from aifx.data.readers.arrow import pa, pq
from aifx.data.readers.parquet import open_parquet
from aifx.data.versions.manifest import ShardFile

SHARD_BYTES = 64 << 20
"""Rows in memory that fill a shard: work for a few seconds."""

PART_BYTES = 2 << 20
"""Rows that are read, judged and written at a time, and a row group of a shard. A process holds several times as
much."""

COMPRESSION = "lz4"
REPEATS_ROWS = 1024
"""First rows by which a column is judged to repeat its values."""

BULK = ("text", "image")
"""Columns that are neither compressed nor put into a dictionary: LZ4 takes half a second per 100 MB of text, and saves
a third of the bytes."""


def return_memory() -> None:
    """Let Arrow return memory to the system at once. Its own allocator keeps what it may need again."""
    pa.set_memory_pool(pa.system_memory_pool())


def dropped_rows(rows: Any, rules: Sequence[str] | Any, twins: Any = None) -> pa.Table:
    """The table of an `Outcome` for dropped rows: their ids, the rule that dropped each, and its twin or null."""
    twins = pa.nulls(len(rows), pa.string()) if twins is None else twins
    return pa.table([_strings(rows), _strings(rules), _strings(twins)], names=[ROW, "rule", "twin"])


def _strings(values: Any) -> Any:
    """Strings as a list or in any Arrow type, such as a dictionary, as an Arrow array of plain strings."""
    return values.cast(pa.string()) if hasattr(values, "cast") else pa.array(values, pa.string())


def repeats(column: pa.ChunkedArray) -> bool:
    """Whether at most half of the first values differ; no for a type whose values Arrow does not compare."""
    first = column.slice(0, REPEATS_ROWS)
    try:
        return 2 * len(first.unique()) <= len(first)
    except pa.ArrowNotImplementedError:  # of lists and of extension types
        return False


# How a version appears whole or not at all. A shard is written to a temporary file, hashed on the way, and renamed when
# its Parquet footer is there. A killed task leaves no half shard, and runs again: its rows give the same bytes. When
# all tasks are done, `seal_version` writes croissant.json, profile.json, SHA256SUMS and, last, manifest.json, which has
# the SHA-256 of every other file: a folder without it is no version. The folder then gets its name, the beginning of
# the manifest's digest, by a rename (`execution`); in a remote store, which has none, the manifest is copied last.
class ShardWriter:
    """Writes the rows of a task into shards, a row group at a time.

    A context: each shard appears whole, when it is full or the block ends, or not at all if the block raises OSError.

    Attributes:
        files: the shards that are whole.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        """Put shards at `path` / "`prefix`-000.parquet" and so on."""
        self.files: list[ShardFile] = []
        self._path, self._prefix = path, prefix
        self._pending: list[pa.Table] = []
        self._pending_bytes = self._rows = self._bytes = 0
        self._stack = ExitStack()
        self._writer: Any = None

    def add(self, rows: pa.Table) -> None:
        """Write rows, of the columns of those before them."""
        self._pending.append(rows.replace_schema_metadata(None))
        self._pending_bytes += rows.nbytes
        if self._pending_bytes >= PART_BYTES // 2:
            self._flush()

    def _flush(self) -> None:
        """Write the rows that wait, so that small parts do not make small row groups."""
        if not self._pending:
            return
        rows = pa.concat_tables(self._pending)
        groups = max(round(self._pending_bytes / PART_BYTES), 1)
        if self._writer is None:
            self._open(rows)
        if len(rows):
            with naming(self._path / self._name):
                self._writer.write_table(rows, max(-(-len(rows) // groups), 1))
        self._rows += len(rows)
        self._bytes += self._pending_bytes
        self._pending, self._pending_bytes = [], 0
        if self._bytes >= SHARD_BYTES:
            self._close()

    def _open(self, rows: pa.Table) -> None:
        self._name = f"{self._prefix}-{len(self.files):03d}.parquet"
        target = self._path / self._name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._hashing = _Hashing(self._stack.enter_context(replacing(target)))
        names = rows.column_names
        self._writer = pq.ParquetWriter(
            self._hashing,
            rows.schema.remove_metadata(),
            compression={name: "none" if name in BULK else COMPRESSION for name in names},
            use_dictionary=[name for name in names if name not in (*BULK, ROW) and repeats(rows.column(name))],
            write_statistics=[ROW] if ROW in names else False,
            store_schema=False,
        )

    def _close(self) -> None:
        """Let the shard appear."""
        with naming(self._path / self._name):
            self._writer.close()
        self._stack.close()
        self.files.append(ShardFile(self._name, self._hashing.digest.hexdigest(), self._rows, self._hashing.bytes))
        self._writer, self._rows, self._bytes = None, 0, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            with self._stack:
                self._flush()
                if self._writer is not None:
                    self._close()
        else:
            if self._writer is not None:
                self._writer.is_open = False  # so that it writes nothing when it is collected
            self._stack.__exit__(*error)


def write_shard(path: Path, prefix: str, rows: pa.Table) -> list[ShardFile]:
    """Put rows into shards at `path`. Raises OSError."""
    with ShardWriter(path, prefix) as shards:
        shards.add(rows)
    return shards.files


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a shard. Raises DataError if it cannot be read."""
    with open_parquet(path, str(path)) as file:
        return file.read(columns=columns, use_threads=False)


def read_parts(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a shard, one row group at a time; a table without rows if it has none. Raises DataError."""
    with open_parquet(path, str(path)) as file:
        if not file.num_row_groups:
            yield file.read(columns=columns)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False)


def records_of(rows: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows by column. In rows with a date or time that Python does not have, dates and times are texts."""
    try:
        return rows.to_pylist()  # type: ignore[no-any-return]
    except (OverflowError, ValueError):
        columns = [c.cast(pa.string()) if pa.types.is_temporal(c.type) else c for c in rows.columns]
        return pa.Table.from_arrays(columns, names=rows.schema.names).to_pylist()  # type: ignore[no-any-return]


def columns_of(rows: pa.Table) -> dict[str, str]:
    """Arrow type by column. Parquet calls the items of a list "element", and Arrow "item": it is the same type."""
    return {field.name: str(field.type).replace("list<element: ", "list<item: ") for field in rows.schema}


class _Hashing(io.RawIOBase):
    """A stream that hashes what it writes to a file, which it leaves open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.bytes = file, Sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.bytes
