"""`aifx data push`: a version into a table, in one transaction: all rows are in the table, or none."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import Array, DataType, RecordBatch, Schema, parquet, types

from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.files import FolderBusy
from aifx.core.json_values import encode_json, plain
from aifx.core.licensing import LicenseConflict
from aifx.core.os_errors import first_line
from aifx.core.parsing import parse_json
from aifx.core.plurals import counted
from aifx.core.progress import Reporter, report_progress
from aifx.core.requests import Request, RequestDone, check_act
from aifx.core.results import Result
from aifx.curation.databases.postgresql import asking, connection_to
from aifx.curation.databases.query import DatabaseUrl, parse_database_url
from aifx.data.names import RESERVED
from aifx.data.readers.parquet import open_parquet
from aifx.data.versions.catalog import Catalog, check_shards
from aifx.data.versions.lineage import record_push
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import identifier

REQUESTS = "aifx_requests"
"""The table, in the schema of the tables that are written, with the requests that wrote them."""

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


def parse_target(url: str, dialects: Sequence[str] = ("postgresql",)) -> Target:
    """The table that the last part of a URL's path names, such as `/shop/sales.orders`. Raises UsageError.

    Args:
        dialects: databases that can have it.
    """
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
    if database.dialect not in dialects:
        why = "aifx writes to PostgreSQL alone" if len(dialects) == 1 else f"it can use {', '.join(dialects)}"
        raise UsageError(f"aifx cannot push to {database.dialect}", why, example)
    schema, dot, table = last.partition(".") if database.is_postgresql else ("", "", last)
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
class Pushed(Result):
    """The document of `aifx data push --json`.

    Attributes:
        table: without login.
        rows: of the version.
        replaced_rows: rows that the table had; null if there was no such table.
        is_written: False after --dry-run.
        license_conflicts: among the version's sources.
        request: the id of the request.
        is_repeated: whether an earlier call with the same id did it, and this is what that call reported.
    """

    reference: str
    table: str
    rows: int
    columns: tuple[PushedColumn, ...]
    replaced_rows: int | None
    is_written: bool
    license_conflicts: tuple[LicenseConflict, ...] = ()
    request: str | None = None
    is_repeated: bool = False


def find_pushed(catalog: Catalog, target: Target, request: Request) -> Pushed | None:
    """The outcome of a request that was done before, by the table of requests beside the target; None if there is none.

    What a kill left out of the lineage is recorded.
    """
    with (
        connection_to(target.url, f"write {target.name}") as connection,
        asking(f"write {target.name}", ""),
        connection.cursor() as cursor,
    ):
        kept = _kept(cursor, target, request)
    if kept is None:
        return None
    pushed, (namespace, table) = RequestDone(kept["outcome"]).repeated(Pushed), kept["openlineage"]
    with suppress(UsageError):  # the version is gone
        record_push(catalog, catalog.manifest(pushed.reference), namespace, table, request.id)
    return pushed


def push(
    catalog: Catalog,
    version: Version,
    target: Target,
    columns: Sequence[str] | None,
    *,
    yes: bool,
    dry_run: bool,
    conflicts: tuple[LicenseConflict, ...] = (),
    request: Request | None = None,
) -> Pushed:
    """Put the rows of a version into a table, in place of all that it has, and record that in the lineage.

    Args:
        columns: by default all but those that aifx adds.
        yes: whether a table that is there may be written.
        conflicts: among the version's sources.
        request: the request for it, which is kept with its outcome in the same transaction.

    Raises UsageError if the table is there without `yes` or lacks a column, EnvironmentFault, DataError for a
    damaged shard or rows that the table does not take.
    """
    check_shards(version)
    schema = _columns_of(version, columns)
    with (
        connection_to(target.url, f"write {target.name}") as connection,
        asking(f"write {target.name}", ""),
        connection.cursor() as cursor,
    ):
        if request is not None and not dry_run and _kept(cursor, target, request, alone=True) is not None:
            raise FolderBusy(
                f"--request {request.id} was done meanwhile", "by another call", "run the same command again"
            )
        before = _Table.find(cursor, target)
        if before is not None:
            _check_table(target, before, schema, yes=yes or dry_run)
        own_types = before.types if before is not None else {}
        replaced = None if before is None else before.rows
        pushed = tuple(PushedColumn(one.name, own_types.get(one.name) or sql_type(one.type)) for one in schema)
        if not dry_run:
            written = before.target if before is not None else target
            if written.schema is None:  # the first of the connection's search path
                cursor.execute("SELECT current_schema()::text")
                written = replace(written, schema=cursor.fetchone()[0])
            replaced = _write(cursor, version, written, schema, before)
        rows, id = version.manifest.rows, None if request is None else request.id
        found = Pushed(version.reference, target.name, rows, pushed, replaced, not dry_run, conflicts, id)
        if not dry_run:
            if request is not None:
                _keep(cursor, target, request, {"outcome": plain(found), "openlineage": written.openlineage})
            connection.commit()
            record_push(catalog, version.manifest, *written.openlineage, id)
    return found


def _kept(cursor: Any, target: Target, request: Request, *, alone: bool = False) -> dict[str, Any] | None:
    """The entry of a request that was done. Raises UsageError if its id did another act.

    Args:
        alone: wait for other transactions of this request, and let others wait for this one.
    """
    if alone:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))::text", (f"{REQUESTS} {request.id}",))
        cursor.fetchone()
    table = target.quoted(REQUESTS)
    cursor.execute("SELECT to_regclass($1)::oid::bigint", (table,))
    if cursor.fetchone()[0] is None:
        return None
    cursor.execute(f"SELECT act, entry FROM {table} WHERE request = $1", (request.id,))
    if (row := cursor.fetchone()) is None:
        return None
    check_act(request.id, row[0] == request.act, f"it is of {row[0]}")
    entry: dict[str, Any] = parse_json(row[1])
    return entry


def _keep(cursor: Any, target: Target, request: Request, entry: Mapping[str, Any]) -> None:
    """Write down that a request was done, as a part of its transaction."""
    table = target.quoted(REQUESTS)
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))::text", (REQUESTS,))  # one makes the table
    cursor.fetchone()
    columns = "request text PRIMARY KEY, act text NOT NULL, entry text NOT NULL"
    cursor.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
    values = request.id, request.act, encode_json(entry, ensure_ascii=False)
    cursor.execute(f"INSERT INTO {table} VALUES ($1, $2, $3)", values)


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
    if not version.shards:
        raise UsageError(f"{version.reference} has no rows of its own", "nothing can be written", "aifx data ls")
    schema = parquet.read_schema(version.shards[0])
    own = [name for name in schema.names if name not in RESERVED]
    chosen = own if names is None else list(names)
    for name in chosen:
        if name not in schema.names:
            what, hint = f"{version.reference} has no column {name!r}", f"--columns {','.join(own)}"
            raise UsageError(what, did_you_mean(name, schema.names), hint)
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
    name = f"aifx_staging_{uuid.uuid4().hex[:12]}"
    staging = target.quoted(name)
    own = ", ".join(f"{identifier(field.name)} {sql_type(field.type)}" for field in schema)
    cursor.execute(f"CREATE TABLE {staging} ({own})")
    sent = SentRows(schema)
    with report_progress(f"writing {target.url.name}", version.manifest.rows, "rows") as progress:
        failures: list[BaseException] = []
        rows = pa.RecordBatchReader.from_batches(schema, _batches(version, schema, sent, progress, failures))
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
    _check_copied(cursor, staging, expected, target.quoted(), names)
    cursor.execute(f"DROP TABLE {staging}")
    return replaced


def _batches(
    version: Version, schema: Schema, sent: SentRows, progress: Reporter, failures: list[BaseException]
) -> Iterator[RecordBatch]:
    """The rows in their storage types. An exception, such as that of Ctrl-C, is added to `failures`, too."""
    try:
        for shard in version.shards:
            with open_parquet(shard, str(shard)) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=schema.names, use_threads=False):
                    rows = _stored(batch, schema)
                    sent.add(rows)
                    yield rows
                    progress.advance(len(batch))
    except GeneratorExit:
        raise
    except BaseException as e:
        failures.append(e)
        raise


def storage_type(kind: DataType) -> DataType:
    """The Arrow type in which the values of a type are sent: one that the driver writes and PostgreSQL has."""
    if types.is_dictionary(kind):
        return storage_type(kind.value_type)
    widened = {pa.uint8(): pa.int16(), pa.int8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}
    widened |= {pa.uint64(): pa.decimal128(20, 0), pa.float16(): pa.float32()}
    if kind in widened:
        return widened[kind]
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz and "UTC")
    if types.is_date(kind):
        return pa.date32()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_list(kind) and not types.is_nested(kind.value_type):
        return pa.list_(storage_type(kind.value_type))
    is_kept = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal128(kind)
    return kind if is_kept else pa.string()


def sql_type(kind: DataType) -> str:
    """PostgreSQL's name of a storage type."""
    names = {
        pa.bool_(): "boolean",
        pa.int16(): "smallint",
        pa.int32(): "integer",
        pa.int64(): "bigint",
        pa.float32(): "real",
        pa.float64(): "double precision",
        pa.date32(): "date",
        pa.binary(): "bytea",
    }
    if types.is_decimal(kind):
        return f"numeric({kind.precision}, {kind.scale})"
    if types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    return f"{sql_type(kind.value_type)}[]" if types.is_list(kind) else names.get(kind, "text")


def _stored(batch: RecordBatch, schema: Schema) -> RecordBatch:
    """The rows in their storage types. Values of other types, such as objects, become JSON.

    Raises DataError for a value that its storage type does not have.
    """
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(column if column.type == field.type else _as_stored(column, field.type))
        except (pa.ArrowException, ValueError, OverflowError) as e:
            what = f"column {field.name!r} of type {column.type} does not fit into {sql_type(field.type)}"
            raise DataError(what, first_line(e), "aifx data push --columns leaves it out") from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_stored(column: Array, kind: DataType) -> Array:
    if not pa.types.is_nested(column.type) or not pa.types.is_string(kind):
        return column.cast(kind)
    values = column.to_pylist()
    texts = [None if value is None else encode_json(value, ensure_ascii=False) for value in values]
    return pa.array(texts, pa.string())


class SentRows:
    """Rows that were sent: their number, and of each column the number of its values and a sum.

    The sum is that of whole numbers, or of the bytes of texts and binary values; 0 for other types.
    """

    def __init__(self, schema: Schema) -> None:
        self._facts = [0]
        self._expressions, self._nouns = ["count(*)"], [("it has", " rows")]
        for field in schema:
            name, about = identifier(field.name), f"column {field.name!r}"
            self._expressions += [f"count({name})", f"coalesce(sum({_summed(field.type, name)}), 0)"]
            self._nouns += [(f"{about} has", " values"), (f"the sum of {about} is", "")]
            self._facts += [0, 0]

    def add(self, batch: RecordBatch) -> None:
        facts = [len(batch)]
        for column in batch.columns:
            facts += [len(column) - column.null_count, _sum(column)]
        self._facts = [one + more for one, more in zip(self._facts, facts, strict=True)]

    def check(self, cursor: Any, table: str) -> None:
        """Raise DataError if a table, named as in SQL, has other rows."""
        cursor.execute(f"SELECT ARRAY[{', '.join(self._expressions)}]::text[] FROM {table}")
        for (noun, unit), sent, got in zip(self._nouns, self._facts, map(int, cursor.fetchone()[0]), strict=True):
            if got != sent:
                why = f"{noun} {got:,}{unit} instead of {sent:,}"
                hint = "aifx has written nothing; run the same command again"
                raise DataError("the database has other rows than aifx sent", why, hint)


def _check_copied(cursor: Any, source: str, values: Sequence[str], target: str, names: Sequence[str]) -> None:
    """Raise DataError if the columns `names` of a table differ from the expressions `values` over another one.

    The sum of the rows' hashes is compared, so their order does not count.
    """
    hashes = []
    for table, columns in ((source, values), (target, names)):
        row_hash = f"hashtextextended(ROW({', '.join(columns)})::text, 0)"
        cursor.execute(f"SELECT count(*), coalesce(sum({row_hash}), 0)::text FROM {table}")
        hashes.append(cursor.fetchone())
    (rows, sent), (kept, found) = hashes
    hint = "aifx has written nothing; name another table"
    if kept != rows:
        why = f"it has {kept:,} rows instead of {rows:,}, perhaps because of a trigger or rule"
        raise DataError(f"the table {target} does not take all rows", why, hint)
    if found != sent:
        raise DataError(f"the table {target} changes rows", "perhaps by a trigger or rule", hint)


def _summed(kind: DataType, name: str) -> str:
    """The SQL expression of the whole numbers that are summed of a column."""
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return f"octet_length({name})"
    return name if pa.types.is_integer(kind) else "0"


def _sum(column: Array) -> int:
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        column = pc.binary_length(column)
    if not pa.types.is_integer(column.type):
        return 0
    numbers = column.fill_null(0).cast(pa.int64()).to_numpy()
    return (int((numbers >> 32).sum()) << 32) + int((numbers & 0xFFFFFFFF).sum())  # a sum of int64 may overflow
