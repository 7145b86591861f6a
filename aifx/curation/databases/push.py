"""`aifx data push`: a version into a table, in one transaction: all rows are in the table, or none."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.progress import Reporter, report_progress
from aifx.curation.databases.columns import sql_type, storage_type, stored
from aifx.curation.databases.postgresql import asking, connection_to
from aifx.curation.databases.urls import DatabaseUrl, parse_database_url
from aifx.curation.sql import identifier
from aifx.data.parquet import open_parquet
from aifx.data.verification import check_shards
from aifx.data.versions import RESERVED, Version

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Target:
    """A table of a database.

    Attributes:
        schema: of PostgreSQL; None for the first of the connection's search path.
    """

    url: DatabaseUrl
    schema: str | None
    table: str

    @property
    def name(self) -> str:
        """As lineage and reports have it: without login and options."""
        return f"{self.url.name}/{f'{self.schema}.' if self.schema else ''}{self.table}"

    def quoted(self, table: str | None = None) -> str:
        """The table, or another one beside it, in SQL."""
        name = identifier(table or self.table)
        return f"{identifier(self.schema)}.{name}" if self.schema else name


def parse_target(url: str) -> Target:
    """The table that the last part of a URL's path names, such as `/shop/sales.orders`. Raises UsageError."""
    example = "postgresql://HOST/DATABASE/TABLE"
    try:
        parts = urlsplit(url)
    except ValueError:
        parse_database_url(url)
        raise
    path, _, last = parts.path.rpartition("/")
    database = parse_database_url(urlunsplit(parts._replace(path=path or "/" + last)))
    if not path.strip("/"):
        raise UsageError(f"{database.name} names no table", "the last part of the URL's path is one", example)
    if not database.is_postgresql:
        why = "aifx writes to PostgreSQL alone"
        raise UsageError(f"aifx cannot push to {database.dialect}", why, example)
    schema, dot, table = last.partition(".")
    names = (unquote(schema), unquote(table)) if dot else ("", unquote(last))
    if not names[1] or (dot and not names[0]):
        raise UsageError(f"{last!r} names no table", "it is TABLE or SCHEMA.TABLE", example)
    return Target(database, names[0] or None, names[1])


@dataclass(frozen=True)
class PushedColumn:
    """A column of the table: `type` is PostgreSQL's name of it."""

    name: str
    type: str


@dataclass(frozen=True)
class Pushed:
    """The document of `aifx data push --json`.

    Attributes:
        table: without login.
        rows: of the version.
        replaced_rows: rows that the table had; null if there was no such table.
        is_written: False after --dry-run.
    """

    reference: str
    table: str
    rows: int
    columns: tuple[PushedColumn, ...]
    replaced_rows: int | None
    is_written: bool


def push(version: Version, target: Target, columns: Sequence[str] | None, *, yes: bool, dry_run: bool) -> Pushed:
    """Put the rows of a version into a table, in place of all that it has.

    Args:
        columns: by default all but those that aifx adds.
        yes: whether a table that is there may be written.

    Raises UsageError if the table is there without `yes` or lacks a column, EnvironmentFault, DataError for a
    damaged shard or rows that the table does not take.
    """
    check_shards(version)
    schema = _columns_of(version, columns)
    with (
        connection_to(target.url, f"write {target.name}") as connection,
        _asking(target),
        connection.cursor() as cursor,
    ):
        before = _Table.find(cursor, target)
        count = None if before is None else _count(cursor, before.target.quoted())
        types = before.types if before is not None else {}
        if before is not None:
            _check_table(target, types, schema, count or 0, yes=yes or dry_run)
        shown = tuple(PushedColumn(one.name, types.get(one.name) or sql_type(one.type)) for one in schema)
        if not dry_run:
            _write(cursor, version, before.target if before is not None else target, schema, types)
            connection.commit()
    return Pushed(version.reference, target.name, version.manifest.rows, shown, count, not dry_run)


def _asking(target: Target) -> AbstractContextManager[None]:
    return asking(f"write {target.name}", "")


@dataclass(frozen=True)
class _Table:
    """A table that is there; `types` are PostgreSQL's, by column."""

    target: Target
    types: Mapping[str, str]

    @classmethod
    def find(cls, cursor: Any, target: Target) -> _Table | None:
        cursor.execute("SELECT to_regclass($1)::oid::bigint", (target.quoted(),))
        oid = cursor.fetchone()[0]
        if oid is None:
            return None
        relation = "FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
        cursor.execute(f"SELECT n.nspname::text, c.relkind::text {relation} WHERE c.oid = {oid}")
        schema, kind = cursor.fetchone()
        if kind not in ("r", "p"):
            raise UsageError(f"{target.name} is no table", "it is a view or another relation", "name another table")
        columns = "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
        written = "attnum > 0 AND NOT attisdropped AND attgenerated = ''"
        cursor.execute(f"{columns} WHERE attrelid = {oid} AND {written} ORDER BY attnum")
        return cls(replace(target, schema=schema), dict(cursor.fetchall()))


def _columns_of(version: Version, names: Sequence[str] | None) -> Schema:
    """The columns to write, in their storage types. Raises UsageError."""
    import pyarrow as pa
    from pyarrow import parquet

    if not version.shards:
        raise UsageError(f"{version.reference} has no rows of its own", "nothing can be written", "aifx data ls")
    schema = parquet.read_schema(version.shards[0])
    chosen = [name for name in schema.names if name not in RESERVED] if names is None else list(names)
    for name in chosen:
        if name not in schema.names:
            raise UsageError(f"{version.reference} has no column {name!r}", did_you_mean(name, schema.names), "")
    return pa.schema([(name, storage_type(schema.field(name).type)) for name in chosen])


def _check_table(target: Target, types: Mapping[str, str], schema: Schema, rows: int, *, yes: bool) -> None:
    if not yes:
        what = f"the table {target.name} is there, with {rows:,} rows"
        raise UsageError(what, "nothing is written to it without --yes", "--yes replaces its rows")
    for name in schema.names:
        if name not in types:
            why = f"its columns are {', '.join(types)}"
            raise UsageError(f"the table {target.name} has no column {name!r}", why, "--columns NAME,…")


def _write(cursor: Any, version: Version, target: Target, schema: Schema, types: Mapping[str, str]) -> None:
    """Copy the rows into a table beside the target, which then takes its rows or its name."""
    staging = f"aifx_staging_{uuid.uuid4().hex[:12]}"
    own = ", ".join(f"{identifier(field.name)} {sql_type(field.type)}" for field in schema)
    cursor.execute(f"CREATE TABLE {target.quoted(staging)} ({own})")
    with report_progress(f"writing {target.url.name}", version.manifest.rows, "rows") as progress:
        import pyarrow as pa

        rows = pa.RecordBatchReader.from_batches(schema, _batches(version, schema, progress))
        cursor.adbc_ingest(staging, rows, mode="append", db_schema_name=target.schema)
    _check_count(cursor, target.quoted(staging), version)
    if types:
        names = ", ".join(identifier(name) for name in schema.names)
        values = ", ".join(f"{identifier(name)}::{types[name]}" for name in schema.names)
        cursor.execute(f"TRUNCATE {target.quoted()}")
        cursor.execute(f"INSERT INTO {target.quoted()} ({names}) SELECT {values} FROM {target.quoted(staging)}")
        _check_count(cursor, target.quoted(), version)
        cursor.execute(f"DROP TABLE {target.quoted(staging)}")
    else:
        cursor.execute(f"ALTER TABLE {target.quoted(staging)} RENAME TO {identifier(target.table)}")


def _batches(version: Version, schema: Schema, progress: Reporter) -> Iterator[RecordBatch]:
    for shard in version.shards:
        with open_parquet(shard, str(shard)) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=schema.names, use_threads=False):
                yield stored(batch, schema)
                progress.advance(len(batch))


def _check_count(cursor: Any, table: str, version: Version) -> None:
    count = _count(cursor, table)
    if count != version.manifest.rows:
        why = f"it has {count:,} rows instead of {version.manifest.rows:,}, perhaps because of a trigger or rule"
        raise DataError(
            f"the table {table} does not take all rows", why, "aifx has written nothing; name another table"
        )


def _count(cursor: Any, table: str) -> int:
    cursor.execute(f"SELECT count(*) FROM {table}")
    count: int = cursor.fetchone()[0]
    return count
