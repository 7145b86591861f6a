"""Connections to databases that hold predictions: transactions, rows, and batches that are inserted.

SQL has parameters `$1`. PostgreSQL comes by ADBC, SQLite and DuckDB by their own modules.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, ClassVar

import pyarrow as pa
from pyarrow import RecordBatch

from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.os_errors import first_line
from aifx.curation.databases.postgresql import asking, connection_to
from aifx.curation.databases.push import Target as Table
from aifx.curation.databases.query import DatabaseUrl, hide_secrets
from aifx.data.versions.sql import identifier

DIALECTS = ("postgresql", "sqlite", "duckdb")

WAIT_S = 60.0
"""Time for which a call waits for a database of one file that another process holds."""


class Connection(ABC):
    """A connection to a database.

    Attributes:
        types: the database's name of the type of a column of predictions.
        values: the query of the texts in `$1`, a list in JSON.
        lock: the end of a SELECT that locks its rows.
        alone: the statement that waits until no other transaction makes tables.
    """

    types: ClassVar[Mapping[Any, str]]
    values: ClassVar[str]
    lock: ClassVar[str] = ""
    alone: ClassVar[str] = ""

    def __init__(self, connection: Any, what: str) -> None:
        self._connection, self._what = connection, what

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction, which is committed if no error ends it. Errors of the driver are an AifxError."""
        with self._errors():
            try:
                self._begin()
                yield
                self._commit()
            except BaseException:
                with suppress(Exception):
                    self._roll_back()
                raise

    @abstractmethod
    def _errors(self) -> AbstractContextManager[None]: ...

    @abstractmethod
    def rows(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        """The rows of a query within the transaction; none of another statement."""

    @abstractmethod
    def insert(self, table: Table, batch: RecordBatch) -> None: ...

    @abstractmethod
    def columns(self, table: Table, name: str) -> dict[str, str]:
        """The type of each column of the table `name` beside `table`; empty if it is not there."""

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _commit(self) -> None: ...

    @abstractmethod
    def _roll_back(self) -> None: ...


class PostgresConnection(Connection):
    values = "SELECT json_array_elements_text($1::json)"
    lock = "FOR UPDATE"
    alone = "SELECT pg_advisory_xact_lock(hashtextextended('aifx_requests', 0))::text"
    types: ClassVar[Mapping[Any, str]] = {
        pa.string(): "text",
        pa.int64(): "bigint",
        pa.float64(): "double precision",
        pa.bool_(): "boolean",
        pa.timestamp("us", "UTC"): "timestamp with time zone",
    }

    def _errors(self) -> AbstractContextManager[None]:
        return asking(self._what, "")

    def rows(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            found: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
            return found

    def insert(self, table: Table, batch: RecordBatch) -> None:
        with self._connection.cursor() as cursor:
            cursor.adbc_ingest(table.table, batch, mode="append", db_schema_name=table.schema)

    def columns(self, table: Table, name: str) -> dict[str, str]:
        sql = (
            "SELECT attname::text, format_type(atttypid, -1) FROM pg_attribute "
            "WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        )
        return dict(self.rows(sql, table.quoted(name)))

    def _begin(self) -> None:
        # Each statement after that of the lock sees what others committed before it was given.
        self.rows("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def _commit(self) -> None:
        self._connection.commit()

    def _roll_back(self) -> None:
        self._connection.rollback()


class SqliteConnection(Connection):
    values = "SELECT value FROM json_each($1)"
    types: ClassVar[Mapping[Any, str]] = {
        pa.string(): "TEXT",
        pa.int64(): "INTEGER",
        pa.float64(): "REAL",
        pa.bool_(): "BOOLEAN",
        pa.timestamp("us", "UTC"): "TIMESTAMP",
    }

    def _errors(self) -> AbstractContextManager[None]:
        return file_errors(self._what)

    def rows(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        return list(self._connection.execute(re.sub(r"\$(\d)", r"?\1", sql), values))

    def insert(self, table: Table, batch: RecordBatch) -> None:
        times = [pa.types.is_timestamp(field.type) for field in batch.schema]
        columns = [
            [time.isoformat(" ") for time in column.to_pylist()] if is_time else column.to_pylist()
            for column, is_time in zip(batch.columns, times, strict=True)
        ]
        names = ", ".join(map(identifier, batch.schema.names))
        marks = ", ".join("?" * len(columns))
        self._connection.executemany(
            f"INSERT INTO {table.quoted()} ({names}) VALUES ({marks})", zip(*columns, strict=True)
        )

    def columns(self, table: Table, name: str) -> dict[str, str]:
        return dict(self.rows("SELECT name, upper(type) FROM pragma_table_info($1)", name))

    def _begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def _roll_back(self) -> None:
        self._connection.execute("ROLLBACK")


class DuckdbConnection(SqliteConnection):
    values = """SELECT unnest(from_json($1, '["VARCHAR"]'))"""
    types: ClassVar[Mapping[Any, str]] = {
        pa.string(): "VARCHAR",
        pa.int64(): "BIGINT",
        pa.float64(): "DOUBLE",
        pa.bool_(): "BOOLEAN",
        pa.timestamp("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
    }

    def rows(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._connection.execute(sql, values).fetchall()
        return found

    def insert(self, table: Table, batch: RecordBatch) -> None:
        names = ", ".join(map(identifier, batch.schema.names))
        self._connection.register("aifx_batch", batch)
        self._connection.execute(f"INSERT INTO {table.quoted()} ({names}) SELECT {names} FROM aifx_batch")
        self._connection.unregister("aifx_batch")

    def columns(self, table: Table, name: str) -> dict[str, str]:
        sql = "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = $1"
        return dict(self.rows(sql, name))

    def _begin(self) -> None:
        self._connection.execute("BEGIN")


@contextmanager
def connect(url: DatabaseUrl, what: str, *, makes: bool = False) -> Iterator[Connection]:
    """A connection to a database. Raises UsageError, EnvironmentFault.

    Args:
        what: the operation, such as "write sqlite:///shop.db/scores".
        makes: make a database of one file that is not there.
    """
    if url.is_postgresql:
        with connection_to(url, what) as connection:
            opened = PostgresConnection(connection, what)
            with opened.transaction():  # ADBC before 1.12 begins the next one at once, and rows are predicted in it
                opened.rows("SET idle_in_transaction_session_timeout = 0")
            yield opened
        return
    connection = open_file(url, what, makes=makes)
    try:
        yield (SqliteConnection if url.dialect == "sqlite" else DuckdbConnection)(connection, what)
    finally:
        connection.close()


def open_file(url: DatabaseUrl, what: str, *, makes: bool = False, read_only: bool = False) -> Any:
    """The driver's connection to a database of one file. Raises UsageError, EnvironmentFault."""
    path = url.database
    if not (os.path.isfile(path) or (makes and os.path.isdir(os.path.dirname(path) or "."))):
        raise UsageError(f"there is no database {path}", f"no such file for {url.name}", f"{url.dialect}:///PATH/TABLE")
    with file_errors(what):
        if url.dialect == "sqlite":
            return sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
        return _open_duckdb(path, read_only)


@contextmanager
def file_errors(what: str, statement: str = "") -> Iterator[None]:
    """Raise an AifxError for an error of SQLite or DuckDB.

    Args:
        what: the operation.
        statement: the option with the user's SQL; "" if aifx wrote it.
    """
    import duckdb

    try:
        yield
    except (sqlite3.Error, duckdb.Error) as e:
        why = hide_secrets(first_line(e))
        if statement:
            raise UsageError(f"{statement} fails", why, "try it in the database's own shell") from None
        is_busy = "locked" in why or "Could not set lock" in why
        hint = "run the same command again" if is_busy else "look at the database with its own shell"
        raise EnvironmentFault(f"could not {what}", why, hint, transient=is_busy) from None


def _open_duckdb(path: str, read_only: bool) -> Any:
    """The database, once no other process has it open, or WAIT_S have passed."""
    import duckdb

    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return duckdb.connect(path, read_only=read_only)
        except duckdb.ConnectionException:  # this process has it open otherwise
            if not read_only:
                raise
            read_only = False
        except duckdb.IOException as e:
            if "Could not set lock" not in str(e) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def is_database(name: str) -> bool:
    """Whether an argument is the URL of a database, rather than of a file in a store."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.partition("+")[0] in ("postgres", "postgresql", "sqlite", "duckdb", "mysql")
