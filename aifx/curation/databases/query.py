"""A query of a database whose rows `aifx data add` reads, and a snapshot of the database, which answers it.

The snapshot of PostgreSQL is in `postgresql.py`, that of the databases that SQLAlchemy knows is here: rows come in
pieces of some thousand, and their columns are found on the way. Passwords are never part of a URL.
"""

from __future__ import annotations

import decimal
import itertools
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import Array, Field, RecordBatch, Schema

from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, EnvironmentFault, UsageError, did_you_mean
from aifx.core.extras import install_command
from aifx.core.os_errors import first_line
from aifx.core.redaction import REMOVED, redact
from aifx.data.versions.sql import check_selection

ROW_BYTES = 128 << 20
"""Size of the largest row. A larger one stays in the database, and the quarantine has its number."""

PASSWORD = "AIFX_DATABASE_PASSWORD"
"""Environment variable with the password of any database. PostgreSQL's own variables and files work too."""

SECRETS = (PASSWORD, "PGPASSWORD", "MYSQL_PWD")
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_SECRET_OPTION = re.compile("pass|pwd|secret|token", re.IGNORECASE)


@dataclass(frozen=True)
class DatabaseUrl:
    """A URL without password.

    Attributes:
        given: as the user wrote it, perhaps with the name of a login.
        dialect: "postgresql", "sqlite", "mysql".
        database: a name, or the path of a file.
    """

    given: str
    dialect: str
    host: str
    port: int | None
    database: str

    @property
    def name(self) -> str:
        """As manifests and reports have it: without login and options."""
        port = f":{self.port}" if self.port else ""
        return f"{self.dialect}://{self.host}{port}/{self.database}"

    @property
    def is_postgresql(self) -> bool:
        return self.dialect == "postgresql"


def parse_database_url(url: str) -> DatabaseUrl:
    """The parts of a URL. Raises UsageError for a password, which the shell's history shows, or without database."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as e:
        # Without the quoted value, which may be part of a password with a character like "/" or "@".
        why = redact(re.sub(r"'[^']*'", "…", str(e)))
        raise UsageError("the URL of the database cannot be read", why, "postgresql://HOST/DATABASE") from None
    dialect = re.sub("^postgres$", "postgresql", parts.scheme.partition("+")[0].lower())
    options = dict(parse_qsl(parts.query))
    if "[" not in host and ":" in host:
        host = f"[{host}]"
    database = unquote(parts.path[1:])
    if dialect not in ("sqlite", "duckdb"):
        given = options.get("host", "")
        host = host or ("" if given.startswith(("/", "@")) else given) or "localhost"  # the folder of a socket
        port = port or (int(options["port"]) if options.get("port", "").isdecimal() else DEFAULT_PORTS.get(dialect))
    found = DatabaseUrl(url, dialect, host, port, database)
    secret = next((name for name in options if _SECRET_OPTION.search(name) and name != "passfile"), None)
    if parts.password is not None or secret is not None:
        what = f"the URL of {found.name} has a password" if secret is None else f"the URL has the option {secret}"
        hint = f"leave it out of the URL, and set the environment variable {PASSWORD}"
        raise UsageError(what, "the list of processes and the shell's history show it", hint)
    if not database:
        raise UsageError(f"{found.name} names no database", "a URL ends with one", f"{parts.scheme}://HOST/DATABASE")
    return found


def hide_secrets(text: str) -> str:
    """`text` without the passwords of the environment, and without all that looks like a secret."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, REMOVED)
    return redact(text)


def missing_extra(error: ImportError) -> EnvironmentFault:
    """The extra `databases` is not installed."""
    why = f"the package {error.name} is not installed" if error.name else first_line(error)
    return EnvironmentFault("aifx cannot use databases here", why, install_command("databases"))


@dataclass(frozen=True)
class Query:
    """A query of a database.

    Attributes:
        sql: without a semicolon at its end.
        key: the column that orders its rows, with unique values; None if there is none.
    """

    url: DatabaseUrl
    sql: str
    key: str | None = None

    @property
    def digest(self) -> str:
        return sha256_of(self.sql)[:12]

    @property
    def name(self) -> str:
        """The source of its rows: the database and a digest of the query, without login."""
        return f"{self.url.name}?query={self.digest}"


@dataclass(frozen=True)
class Part:
    """Rows that were read, in the order of the key, and where they are in the file of them.

    Attributes:
        after: the key before the first, as text; None if there is none.
        last: the key of the last, as text; None without key.
        digest: the sum of the hashes of the rows, modulo 2**64.
        end: bytes of the file up to its end.
        sha256: of its bytes in the file and of all other attributes.
    """

    after: str | None
    last: str | None
    rows: int
    digest: int
    end: int
    sha256: str


def check_column_names(names: Sequence[str]) -> None:
    """Raise UsageError for a query that gives two columns of one name."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        why = "columns of a data set have different names"
        raise UsageError(f"--query gives two columns {twice!r}", why, f"SELECT … AS {twice}_2")


class Snapshot(ABC):
    """An open connection that reads the database at one point in time.

    Attributes:
        schema: the columns of the rows that `read` gives, CHECK last if there is one.
    """

    schema: Schema

    @abstractmethod
    def read(self, after: str | None) -> Iterator[RecordBatch]:
        """The rows, those with a key after `after` if that is given. Raises EnvironmentFault, DataError."""

    def has_part(self, part: Part) -> bool:
        """Whether the database still has exactly the rows of a part."""
        return False


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
            is_busy = "database is locked" in why or "Could not set lock" in why
            raise UsageError("--query fails", why, "try it in the database's own shell", transient=is_busy) from None
        what, again = f"could not read {query.url.name}", "run the same command again"
        raise EnvironmentFault(what, why, again, transient=True) from None
    except ImportError as e:
        raise _not_installed(query, e.name) from None


def _not_installed(query: Query, package: str | None) -> EnvironmentFault:
    needed = DRIVERS.get(query.url.dialect, package or query.url.dialect)
    what, why = f"aifx cannot read {query.url.name}", f"{package or needed} is not installed"
    return EnvironmentFault(what, why, f"pip install {needed}")
