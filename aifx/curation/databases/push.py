"""`aifx data push`: a version into a table, in one transaction: all rows are in the table, or none."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from aifx.core.errors import UsageError, did_you_mean
from aifx.core.plurals import counted
from aifx.core.progress import Reporter, report_progress
from aifx.curation.databases.columns import sql_type, storage_type, stored
from aifx.curation.databases.postgresql import asking, connection_to
from aifx.curation.databases.sent_rows import SentRows, check_copied
from aifx.curation.databases.urls import DatabaseUrl, parse_database_url
from aifx.data.names import RESERVED
from aifx.data.readers.parquet import open_parquet
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.lineage import record_push
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import identifier
from aifx.data.versions.verification import check_shards

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

BATCH_ROWS = 1 << 16
MOST_NAME_BYTES = 63


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

    @property
    def openlineage(self) -> tuple[str, str]:
        """Its namespace and name in OpenLineage."""
        return f"postgres://{self.url.host}:{self.url.port}", f"{self.url.database}.{self.schema}.{self.table}"

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
    for name in names:
        _check_length(name, "the table", example)
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


def push(
    catalog: Catalog, version: Version, target: Target, columns: Sequence[str] | None, *, yes: bool, dry_run: bool
) -> Pushed:
    """Put the rows of a version into a table, in place of all that it has, and record that in the lineage.

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
        if before is not None:
            _check_table(target, before, schema, yes=yes or dry_run)
        types = before.types if before is not None else {}
        replaced = None if before is None else before.rows
        shown = tuple(PushedColumn(one.name, types.get(one.name) or sql_type(one.type)) for one in schema)
        if not dry_run:
            written = before.target if before is not None else _in_first_schema(cursor, target)
            replaced = _write(cursor, version, written, schema, before)
            connection.commit()
            record_push(catalog, version.manifest, *written.openlineage)
    return Pushed(version.reference, target.name, version.manifest.rows, shown, replaced, not dry_run)


def _in_first_schema(cursor: Any, target: Target) -> Target:
    """The table with its schema: by default the first of the connection's search path."""
    if target.schema is not None:
        return target
    cursor.execute("SELECT current_schema()::text")
    return replace(target, schema=cursor.fetchone()[0])


def _asking(target: Target) -> AbstractContextManager[None]:
    return asking(f"write {target.name}", "")


@dataclass(frozen=True)
class _Table:
    """A table that is there.

    Attributes:
        target: with its schema.
        types: PostgreSQL's names of the columns' types, such as "varchar(8)".
        base_types: the same without length or precision.
    """

    target: Target
    types: Mapping[str, str]
    base_types: Mapping[str, str]
    rows: int

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
        cursor.execute(f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = {oid} LIMIT 1")
        if kind == "r" and (child := cursor.fetchone()) is not None:
            why = f"their rows would be replaced too, such as those of {child[0]}"
            raise UsageError(f"other tables inherit from {target.name}", why, "name another table")
        names = "attname::text, format_type(atttypid, atttypmod), format_type(atttypid, -1)"
        written = "attnum > 0 AND NOT attisdropped AND attgenerated = ''"
        cursor.execute(f"SELECT {names} FROM pg_attribute WHERE attrelid = {oid} AND {written} ORDER BY attnum")
        columns = cursor.fetchall()
        types, base_types = ({column[0]: column[at] for column in columns} for at in (1, 2))
        found = replace(target, schema=schema)
        cursor.execute(f"SELECT count(*) FROM {found.quoted()}")
        return cls(found, types, base_types, cursor.fetchone()[0])


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
            known = [one for one in schema.names if one not in RESERVED]
            hint = f"--columns {','.join(known)}"
            raise UsageError(f"{version.reference} has no column {name!r}", did_you_mean(name, schema.names), hint)
    for name in chosen:
        _check_length(name, "the column", "aifx data query NAME 'SELECT … AS shorter' --output FILE renames it")
    return pa.schema([(name, storage_type(schema.field(name).type)) for name in chosen])


def _check_length(name: str, what: str, hint: str) -> None:
    """Raise UsageError for a name that PostgreSQL would cut."""
    if len(name.encode()) > MOST_NAME_BYTES:
        why = f"PostgreSQL cuts names after {MOST_NAME_BYTES} bytes, and this one has {len(name.encode())}"
        raise UsageError(f"the name of {what} {name!r} is too long", why, hint)


def _check_table(target: Target, table: _Table, schema: Schema, *, yes: bool) -> None:
    if not yes:
        what = f"the table {target.name} is there, with {counted(table.rows, 'row')}"
        raise UsageError(what, "nothing is written to it without --yes", "--yes replaces its rows")
    for name in schema.names:
        if name not in table.types:
            why = f"its columns are {', '.join(table.types)}"
            raise UsageError(f"the table {target.name} has no column {name!r}", why, "--columns NAME,…")


def _write(cursor: Any, version: Version, target: Target, schema: Schema, before: _Table | None) -> int | None:
    """Copy the rows into a table beside the target, which then takes its rows or its name.

    Returns the number of rows that were replaced; None if there was no table.
    """
    import pyarrow as pa

    name = f"aifx_staging_{uuid.uuid4().hex[:12]}"
    staging = target.quoted(name)
    own = ", ".join(f"{identifier(field.name)} {sql_type(field.type)}" for field in schema)
    cursor.execute(f"CREATE TABLE {staging} ({own})")
    sent = SentRows(schema)
    with report_progress(f"writing {target.url.name}", version.manifest.rows, "rows") as progress:
        failures: list[BaseException] = []
        batches = _keeping_errors(failures, _batches(version, schema, sent, progress))
        rows = pa.RecordBatchReader.from_batches(schema, batches)
        try:
            cursor.adbc_ingest(name, rows, mode="append", db_schema_name=target.schema)
        except Exception:
            if failures:  # the driver's error only quotes it
                raise failures[0] from None
            raise
    sent.check(cursor, staging)
    if before is None:
        cursor.execute(f"ALTER TABLE {staging} RENAME TO {identifier(target.table)}")
        return None
    names = [identifier(column) for column in schema.names]
    # A cast to varchar(8) cuts texts; PostgreSQL refuses them if the cast is to varchar.
    values = [f"{identifier(column)}::{before.base_types[column]}" for column in schema.names]
    # Others may have written to the table while the rows were copied.
    cursor.execute(f"LOCK TABLE {target.quoted()} IN ACCESS EXCLUSIVE MODE")
    cursor.execute(f"SELECT count(*) FROM {target.quoted()}")
    replaced: int = cursor.fetchone()[0]
    cursor.execute(f"TRUNCATE {target.quoted()}")
    cursor.execute(f"INSERT INTO {target.quoted()} ({', '.join(names)}) SELECT {', '.join(values)} FROM {staging}")
    expected = [f"{identifier(column)}::{before.types[column]}" for column in schema.names]
    check_copied(cursor, staging, expected, target.quoted(), names)
    cursor.execute(f"DROP TABLE {staging}")
    return replaced


def _keeping_errors(failures: list[BaseException], batches: Iterator[RecordBatch]) -> Iterator[RecordBatch]:
    """Yield the batches, and add an exception that they raise, such as that of Ctrl-C, to `failures`."""
    try:
        yield from batches
    except GeneratorExit:
        raise
    except BaseException as e:
        failures.append(e)
        raise


def _batches(version: Version, schema: Schema, sent: SentRows, progress: Reporter) -> Iterator[RecordBatch]:
    for shard in version.shards:
        with open_parquet(shard, str(shard)) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=schema.names, use_threads=False):
                rows = stored(batch, schema)
                sent.add(rows)
                yield rows
                progress.advance(len(batch))
