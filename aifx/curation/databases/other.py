"""Databases that SQLAlchemy knows: rows come in pieces of some thousand, and their columns are found on the way."""

from __future__ import annotations

import decimal
import itertools
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import Array, Field, RecordBatch

from aifx.core.errors import AifxError, EnvironmentFault, UsageError, did_you_mean
from aifx.core.os_errors import first_line
from aifx.curation.databases.query import PASSWORD, Query, Snapshot, check_column_names, hide_secrets, missing_extra
from aifx.data.versions.sql import check_selection

PIECE_ROWS = 10_000
DRIVERS = {"mysql": "pymysql", "mariadb": "pymysql", "duckdb": "duckdb-engine", "oracle": "oracledb", "mssql": "pyodbc"}
"""The package that a dialect needs if its URL names no other driver."""


class OtherSnapshot(Snapshot):
    """The result of a query, which is read twice: once for its columns, and once for its rows, in one transaction."""

    def __init__(self, connection: Any, query: Query) -> None:
        self._connection, self._query = connection, query
        self.schema = pa.schema([])
        for names, columns in self._pieces():
            found = pa.table(columns, names=names).schema
            try:
                self.schema = pa.unify_schemas([self.schema, found], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
                hint = "CAST the column to one type in the query"
                raise UsageError("a column of --query has values of several types", first_line(e), hint) from None

    def _pieces(self) -> Iterator[tuple[list[str], list[Array]]]:
        """Column names and columns; at least once."""
        import sqlalchemy

        with _asking(self._query):
            streaming = self._connection.execution_options(stream_results=True, yield_per=PIECE_ROWS)
            with streaming.execute(sqlalchemy.text(self._query.sql.replace(":", r"\:"))) as result:
                if not result.returns_rows:
                    raise UsageError("--query gives no rows", "aifx reads and changes nothing", "--query 'SELECT …'")
                names = list(result.keys())
                check_column_names(names)
                for rows in itertools.chain([[]], result.partitions(PIECE_ROWS)):
                    yield names, [_column(name, [row[i] for row in rows], self._query) for i, name in enumerate(names)]

    def read(self, after: str | None) -> Iterator[RecordBatch]:
        for _, columns in self._pieces():
            fitted = [_fitted(column, field) for column, field in zip(columns, self.schema, strict=True)]
            batch = pa.RecordBatch.from_arrays(fitted, schema=self.schema)
            if len(batch):
                yield batch


@contextmanager
def open_other(query: Query) -> Iterator[OtherSnapshot]:
    """The database of a query, in one transaction. Raises EnvironmentFault, UsageError."""
    if query.key is not None:
        why = f"{query.url.dialect} is read from the beginning if it is interrupted"
        raise UsageError("--key can only be used with PostgreSQL", why, "leave it out")
    try:
        import sqlalchemy
    except ImportError as e:
        raise missing_extra(e) from None
    url = query.url
    is_file = url.dialect in ("sqlite", "duckdb")
    if not is_file and _READS.match(query.sql) is None:  # MySQL and Oracle commit before they change a table's columns
        raise UsageError("--query does not begin with SELECT", "aifx reads and changes nothing", "--query 'SELECT …'")
    if is_file and not os.path.isfile(url.database):
        raise UsageError(f"there is no database {url.database}", "no such file", f"{url.dialect}:///PATH")
    try:
        address = sqlalchemy.make_url(url.given)
        if (password := os.environ.get(PASSWORD)) is not None and url.host:
            address = address.set(password=password)
        options = {"read_only": True} if url.dialect == "duckdb" else {}
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, connect_args=options)
    except sqlalchemy.exc.NoSuchModuleError:
        if url.dialect in DRIVERS:
            raise _not_installed(query, DRIVERS[url.dialect]) from None
        why = f"SQLAlchemy has no dialect {url.dialect!r} here; {did_you_mean(url.dialect, DRIVERS)}"
        raise UsageError(
            f"aifx cannot read {url.name}", why, "correct the URL, or install the dialect's package"
        ) from None
    except ImportError as e:
        raise _not_installed(query, e.name) from None
    except sqlalchemy.exc.ArgumentError:
        raise UsageError(f"{url.name} is not a URL of SQLAlchemy", "it cannot be read", "mysql+pymysql://…") from None
    with _asking(query):
        connection = engine.connect()
    try:
        if url.dialect in ("mysql", "mariadb"):
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with _asking(query):
            _begin_reading(connection, query)
        yield OtherSnapshot(connection, query)
    finally:
        connection.close()  # without commit
        engine.dispose()


_READS = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*(?:select|with|values|table)\b", re.IGNORECASE | re.DOTALL)


def _begin_reading(connection: Any, query: Query) -> None:
    """Begin a transaction of SQLite or DuckDB in which nothing can be written. Raises UsageError."""
    import sqlite3

    if query.url.dialect == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")
        connection.exec_driver_sql("BEGIN")  # Python's driver begins no transaction for a SELECT
        files = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)  # SQLite makes a file that is attached
        driver = connection.connection.driver_connection
        driver.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in files else sqlite3.SQLITE_OK)
    elif query.url.dialect == "duckdb":
        import duckdb

        try:
            check_selection(connection.connection.driver_connection, query.sql, "--query 'SELECT …'")
        except duckdb.Error as e:
            raise UsageError(
                "--query fails", hide_secrets(first_line(e)), "try it in the database's own shell"
            ) from None


def _column(name: str, values: list[Any], query: Query) -> Any:
    """Values in the type that Arrow finds for them; those of no type of Arrow's, and decimals, as text."""
    if any(isinstance(value, decimal.Decimal | uuid.UUID) for value in values):
        values = [None if value is None else str(value) for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as e:
        why = hide_secrets(first_line(e))
        hint = f"--query 'SELECT CAST({name} AS TEXT) AS {name} …'"
        raise UsageError(f"column {name!r} of {query.url.name} has values of several types", why, hint) from None


def _fitted(column: Array, field: Field) -> Array:
    """A column of a piece in the type that all pieces together have."""
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        hint = f"--query 'SELECT CAST({field.name} AS TEXT) AS {field.name} …'"
        raise UsageError(f"column {field.name!r} of --query has values of several types", first_line(e), hint) from None


@contextmanager
def _asking(query: Query) -> Iterator[None]:
    import sqlalchemy

    try:
        yield
    except (AifxError, GeneratorExit):
        raise
    except sqlalchemy.exc.DBAPIError as e:
        why = hide_secrets(first_line(e.orig or e))
        is_file = query.url.dialect in ("sqlite", "duckdb")
        if isinstance(e, sqlalchemy.exc.ProgrammingError) or is_file:
            raise UsageError("--query fails", why, "try it in the database's own shell") from None
        raise EnvironmentFault(f"could not read {query.url.name}", why, "run the same command again") from None
    except ImportError as e:
        raise _not_installed(query, e.name) from None


def _not_installed(query: Query, package: str | None) -> EnvironmentFault:
    needed = DRIVERS.get(query.url.dialect, package or query.url.dialect)
    what, why = f"aifx cannot read {query.url.name}", f"{package or needed} is not installed"
    return EnvironmentFault(what, why, f"pip install {needed}")
