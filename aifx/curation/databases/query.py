"""A database, a query whose rows `aifx data add` reads, and the interface of the databases that answer it.

Passwords are never part of a URL.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from aifx.core.digests import sha256_of
from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.extras import install_command
from aifx.core.os_errors import first_line
from aifx.core.redaction import REMOVED, redact

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

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
