"""PostgreSQL: rows by COPY into Arrow, in one transaction, which reads one snapshot of the database.

ADBC's driver gives some types wrongly or as bytes that only PostgreSQL reads: money, ranges, infinite times, arrays of
several dimensions. The query is therefore wrapped into one that turns them into text, and that replaces what Arrow
cannot hold with null and marks its row in a column of its own. https://arrow.apache.org/adbc/current/driver/postgresql
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import Field, RecordBatch

from aifx.core.environment import environment
from aifx.core.errors import AifxError, DataError, EnvironmentFault, UsageError, did_you_mean
from aifx.curation.databases.query import (
    PASSWORD,
    ROW_BYTES,
    DatabaseUrl,
    Part,
    Query,
    Snapshot,
    check_column_names,
    hide_secrets,
    missing_extra,
)
from aifx.data.readers.columnar import CHECK, KEY, REASONS, TYPE
from aifx.data.versions.sql import identifier, quoted

SESSION = (
    "SET standard_conforming_strings TO on",
    "SET client_encoding TO 'UTF8'",
    "SET TIME ZONE 'UTC'",
    "SET datestyle TO 'ISO'",
    "SET intervalstyle TO 'iso_8601'",
    "SET bytea_output TO 'hex'",
    "SET extra_float_digits TO 1",
    "SET synchronize_seqscans TO off",
    "SET statement_timeout TO 0",
    "SET idle_in_transaction_session_timeout TO 0",
)
"""Settings that decide how values are written as text, and in which order rows come."""

BATCH_BYTES = 16 << 20
"""Approximate size of a batch. The same rows come in the same batches, so that their file has the same bytes."""

FIXED = frozenset({"bool", "int2", "int4", "int8", "float4", "float8"})
TIMES = {"date": "1000000-01-01", "timestamp": "290000-01-01", "timestamptz": "290000-01-01"}
"""The day before which Arrow holds all values of a type."""

TEXTS = frozenset({"text", "varchar", "bpchar", "name", "bytea"})
LISTS = frozenset({"_bool", "_int2", "_int4", "_int8", "_float4", "_float8", "_text", "_varchar"})
KEYS = frozenset({"int2", "int4", "int8", "text", "varchar", "uuid", "numeric", "timestamp", "timestamptz"})
"""Types whose values have an order, and whose text PostgreSQL reads back."""

LOST = re.compile("closed the connection|terminat|connection (?:not open|refused|reset|timed out)|shutting down", re.I)

_OF_STATEMENTS = ("0A", "22", "23", "25", "42", "44", "P0")
"""Classes of SQLSTATE for statements and values at fault."""

NO_ROOM = re.compile("tuple is too big|invalid memory alloc request|enlarge string buffer")
"""Errors about a row of more than 1 GB. The driver gives no code for some of them."""


@dataclass(frozen=True)
class Column:
    """A column of the query.

    Attributes:
        type: PostgreSQL's name of its type.
        modifier: PostgreSQL's precision and scale of a numeric; -1 if it has none.
        shape: "value", "list" or "struct".
    """

    name: str
    type: str
    modifier: int
    shape: str

    @classmethod
    def of(cls, field: Field) -> Column:
        metadata = field.metadata or {}
        shape = "list" if pa.types.is_list(field.type) else "struct" if pa.types.is_struct(field.type) else "value"
        kind = metadata.get(b"POSTGRESQL:type", b"").decode()
        return cls(field.name, kind, int(metadata.get(b"POSTGRESQL:typmod", b"-1")), shape)

    @property
    def decimal(self) -> tuple[int, int] | None:
        """Precision and scale, if Arrow has a type for them."""
        if self.type != "numeric" or self.modifier < 4:
            return None
        precision, scale = (self.modifier - 4) >> 16 & 0xFFFF, (self.modifier - 4) & 0x7FF
        return (precision, scale) if scale <= precision <= 38 else None

    @property
    def selected(self) -> str:
        """The expression of its value in a type that Arrow has."""
        name = f"q.{identifier(self.name)}"
        if self.type in FIXED or self.type in TIMES or self.type in TEXTS:
            return name
        if self.shape == "list":
            items = name if self.type in LISTS else f"{name}::text[]"
            return f"({items})[:]"  # the driver takes arrays whose first index is 0 or 1
        if self.shape == "struct":
            return f"to_json({name})::text"
        if self.type == "money":
            return f"{name}::numeric::text"
        return f"{name}::bigint" if self.type == "oid" else f"{name}::text"

    @property
    def fault(self) -> tuple[str, str] | None:
        """A condition of values that cannot be taken, and the reason."""
        name = f"r.{identifier(self.name)}"
        if limit := TIMES.get(self.type):
            why = f"column {self.name!r} is infinite, or after the year {limit.partition('-')[0]}"
            return f"NOT (isfinite({name}) AND {name} < '{limit}')", why
        if self.decimal is not None:
            return f"{name} = 'NaN'", f"column {self.name!r} is NaN, which no decimal is"
        if self.shape == "list":
            return f"array_ndims({name}) > 1", f"column {self.name!r} is an array of several dimensions"
        return None

    @property
    def size(self) -> str | None:
        """The expression of its bytes; None if they are few."""
        name = f"r.{identifier(self.name)}"
        if self.type in FIXED or self.type in TIMES or self.type in ("oid", "uuid", "name"):
            return None
        return f"pg_column_size({name})" if self.shape == "list" else f"octet_length({name})"


class PostgresSnapshot(Snapshot):
    """A transaction of a connection, which reads the rows of a query."""

    def __init__(self, connection: Any, query: Query) -> None:
        self._connection, self._query = connection, query
        with self._asking(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            for statement in SESSION:
                cursor.execute(statement)
            found = cursor.adbc_execute_schema(f"SELECT * FROM (\n{query.sql}\n) AS q")
            self._columns = [Column.of(field) for field in found]
            self._check_columns()
            faults = [column.fault for column in self._columns]
            self._reasons = [*(fault[1] for fault in faults if fault), f"its values have more than {ROW_BYTES:,} bytes"]
            cursor.execute("SELECT current_setting('server_version_num')::int >= 140000")
            is_new = cursor.fetchone()[0]
            hashed = "hash_record_extended(ROW(r.*), 0)" if is_new else "hashtextextended(ROW(r.*)::text, 0)"
            self._hash = f"{hashed} & 9223372036854775807"
            fields = [self._field(one) for one in cursor.adbc_execute_schema(self._statement())]
        self.schema = pa.schema(fields, metadata={REASONS: json.dumps(self._reasons), KEY: query.key or ""})

    def _check_columns(self) -> None:
        names = [column.name for column in self._columns]
        if CHECK in names:
            raise UsageError(f"--query gives a column {CHECK}", "aifx uses this name", f"SELECT {CHECK} AS check_2")
        if not names:
            raise UsageError("--query gives no rows", "it has no columns", "--query 'SELECT * FROM table'")
        check_column_names(names)
        key = self._query.key
        if key is None:
            return
        if key not in names:
            raise UsageError(f"--query gives no column {key!r}", did_you_mean(key, names), f"--key {names[0]}")
        kind = self._key.type
        if kind not in KEYS:
            raise UsageError(f"--key {key} is of type {kind}", f"a key is one of {', '.join(sorted(KEYS))}", "")

    @property
    def _key(self) -> Column:
        return next(column for column in self._columns if column.name == self._query.key)

    def _statement(self, after: str | None = None, last: str | None = None) -> str:
        """The query in types that Arrow has, with the column CHECK if it is needed.

        Args:
            after: the rows have keys after this one.
            last: the rows have keys up to this one.
        """
        inner = ", ".join(f"{column.selected} AS {identifier(column.name)}" for column in self._columns)
        sizes = [f"coalesce({column.size}, 0)::bigint" for column in self._columns if column.size]
        is_large = f"{' + '.join(sizes)} > {ROW_BYTES}" if sizes else ""
        outer = []
        for column in self._columns:
            name = identifier(column.name)
            unfit = " OR ".join(each for each in (column.fault and column.fault[0], column.size and is_large) if each)
            outer.append(f"CASE WHEN {unfit} THEN NULL ELSE r.{name} END AS {name}" if unfit else f"r.{name}")
        conditions = [column.fault[0] for column in self._columns if column.fault] + ([is_large] if sizes else [])
        numbers = " ".join(f"WHEN {one} THEN {-1 - index}" for index, one in enumerate(conditions))
        value = self._hash if self._query.key is not None else "0"
        if numbers:
            outer.append(f"(CASE {numbers} ELSE {value} END)::bigint AS {CHECK}")
        elif self._query.key is not None:
            outer.append(f"{value} AS {CHECK}")
        where = order = ""
        if self._query.key is not None:
            key = f"q.{identifier(self._query.key)}"
            bounds = [f"{key} {sign} {quoted(text)}::{self._key.type}"
                      for sign, text in ((">", after), ("<=", last)) if text is not None]  # fmt: skip
            where, order = f"WHERE {' AND '.join(bounds)}" if bounds else "", f"ORDER BY {key}"
        # OFFSET 0 keeps PostgreSQL from computing an expression of the inner query each time that it is used.
        inside = f"SELECT {inner} FROM (\n{self._query.sql}\n) AS q {where} {order} OFFSET 0"
        return f"SELECT {', '.join(outer)} FROM ({inside}) AS r"

    def _field(self, field: Field) -> Field:
        kind = getattr(field.type, "storage_type", field.type)
        kind = pa.list_(kind.value_type) if pa.types.is_list(kind) else kind  # without its metadata
        decimal = next((c.decimal for c in self._columns if c.name == field.name), None)
        metadata = {TYPE: f"decimal128({decimal[0]}, {decimal[1]})"} if decimal else None
        return pa.field(field.name, kind, metadata=metadata)

    def read(self, after: str | None) -> Iterator[RecordBatch]:
        from adbc_driver_postgresql import StatementOptions

        with self._asking(), self._connection.cursor() as cursor:
            hint = {StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)}
            cursor.adbc_statement.set_options(**hint)
            cursor.execute(self._statement(after))
            for batch in cursor.fetch_record_batch():
                plain = (getattr(column, "storage", column) for column in batch)  # of a type of Arrow's own
                columns = [column.cast(field.type) for column, field in zip(plain, self.schema, strict=True)]
                yield pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def has_part(self, part: Part) -> bool:
        rows = self._statement(part.after, part.last)
        with self._asking(), self._connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*), coalesce(sum({CHECK}), 0)::text FROM ({rows}) AS s")
            count, total = cursor.fetchone()
        return (count, int(total) % 2**64) == (part.rows, part.digest)

    def _asking(self) -> AbstractContextManager[None]:
        return asking(f"read {self._query.url.name}", "--query")


@contextmanager
def open_snapshot(query: Query) -> Iterator[PostgresSnapshot]:
    """A snapshot of the database from now on. Raises EnvironmentFault, UsageError, DataError."""
    with connection_to(query.url, f"read {query.url.name}") as connection:
        yield PostgresSnapshot(connection, query)


@contextmanager
def connection_to(url: DatabaseUrl, what: str) -> Iterator[Any]:
    """A connection whose statements are one transaction, which ends without commit unless it is committed."""
    try:
        from adbc_driver_postgresql import __version__ as driver
        from adbc_driver_postgresql import dbapi
    except ImportError as e:
        raise missing_extra(e) from None
    if driver.startswith("1.12."):
        why = f"adbc-driver-postgresql {driver} begins no transaction after a SELECT (apache/arrow-adbc#4695)"
        raise EnvironmentFault(f"could not {what}", why, "pip install 'adbc-driver-postgresql!=1.12.*'")
    scheme, _, rest = url.given.partition("://")
    password = os.environ.get(PASSWORD)
    with asking(what, "the URL"), environment({} if password is None else {"PGPASSWORD": password}):
        connection = dbapi.connect(f"{scheme.partition('+')[0]}://{rest}")
    try:
        yield connection
    finally:
        with suppress(Exception):  # of a server that is gone
            connection.close()


@contextmanager
def asking(what: str, statement: str) -> Iterator[None]:
    """Raise an AifxError that has no secret for an error of the driver.

    Args:
        what: the operation, such as "read postgresql://host/db".
        statement: the option with the user's SQL; "" if aifx wrote it.
    """
    from adbc_driver_manager import Error

    try:
        yield
    except (AifxError, GeneratorExit):
        raise
    except (Error, OSError, ValueError) as e:  # ValueError: pyarrow's, of a value within a row
        if "canceling statement due to user request" in str(e):  # the driver does this at Ctrl-C
            raise KeyboardInterrupt from None
        raise translated(e, what, statement) from None


def translated(error: Exception, what: str, statement: str) -> AifxError:
    """The AifxError of a driver's error."""
    text = hide_secrets(str(error))
    state = str(getattr(error, "sqlstate", None) or "")
    match = re.search(r"(?:ERROR|FATAL):\s+([^\n]+)", text)
    why = match[1] if match else next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    why = re.sub(r"^[A-Z_]+: (?:\[libpq\] )?|^\[libpq\] ", "", why)
    if "FATAL" in text:  # of a login, whose name is not shown
        why = re.sub(r'(user|role) "[^"]*"', r"the \1", why)
    if state[:2] == "28" or "authentication failed" in why or "no password supplied" in text:
        return EnvironmentFault(f"could not {what}", why, f"set the environment variable {PASSWORD}")
    if re.match(r'(database|schema) "', why) and why.endswith("does not exist"):
        return UsageError(f"could not {what}", why, "correct the name in the URL, or create it in the database")
    if state == "42501" and not statement:
        return UsageError(f"could not {what}", why, "GRANT the right to the login of the URL, or use another one")
    # An error of SQL may quote a name such as terminated_at.
    is_of_server = state[:2] in ("08", "57") or "Failed to connect" in text
    if is_of_server or (LOST.search(text) and state[:2] not in _OF_STATEMENTS):
        hint = "run the same command again when the server answers"
        return EnvironmentFault(f"could not {what}", why, hint, transient=True)
    if state[:2] in _OF_STATEMENTS or "read-only transaction" in why:
        if statement:
            return UsageError(f"{statement} fails", why, "try it with psql")
        if state[:2] in ("23", "44", "P0"):
            return DataError(f"could not {what}: the table refuses a row", why, "aifx has written nothing")
        hint = "aifx data query NAME SQL shows the values; aifx data push --columns"
        return DataError(f"could not {what}", why, hint)
    if state[:2] in ("54", "53") or NO_ROOM.search(why):
        hint = "select fewer columns or rows, or parts of long values"
        what = f"could not {what}: the server has no room for a row"
        return DataError(what, why, hint, transient=state[:2] == "53")  # a full disk, or too many connections
    return EnvironmentFault(f"could not {what}", why, "run the same command again", transient=True)
