"""URLs of databases, and the passwords that are never part of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from aifx.core.environment import environment
from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.extras import install_command
from aifx.core.os_errors import first_line
from aifx.core.redaction import REMOVED, redact

PASSWORD = "AIFX_DATABASE_PASSWORD"
"""Environment variable with the password of any database. PostgreSQL's own variables and files work too."""

SECRETS = (PASSWORD, "PGPASSWORD", "MYSQL_PWD")
POSTGRESQL = ("postgresql", "postgres")
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_SECRET_OPTION = re.compile("pass|pwd|secret|token", re.IGNORECASE)


@dataclass(frozen=True)
class DatabaseUrl:
    """A URL without password.

    Attributes:
        given: as the user wrote it, perhaps with the name of a login.
        dialect: "postgresql", "sqlite", "mysql".
        database: a name, or the path of a file.
        options: what follows "?", or "".
    """

    given: str
    dialect: str
    host: str
    port: int | None
    database: str
    options: str

    @property
    def name(self) -> str:
        """As manifests and reports have it: without login and options."""
        port = f":{self.port}" if self.port else ""
        return f"{self.dialect}://{self.host}{port}/{self.database}"

    @property
    def is_postgresql(self) -> bool:
        return self.dialect == "postgresql"


def parse_database_url(url: str) -> DatabaseUrl:
    """Raises UsageError for a URL with a password, which `ps` and the shell's history show, or without database."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as e:
        hint = "postgresql://HOST/DATABASE"
        raise UsageError("the URL of the database cannot be read", _without_value(e), hint) from None
    dialect = parts.scheme.partition("+")[0].lower()
    dialect = "postgresql" if dialect in POSTGRESQL else dialect
    options = dict(parse_qsl(parts.query))
    if "[" not in host and ":" in host:
        host = f"[{host}]"
    database = unquote(parts.path[1:])
    if dialect not in ("sqlite", "duckdb"):
        host = host or _host_of(options.get("host", "")) or "localhost"
        port = port or (int(options["port"]) if options.get("port", "").isdecimal() else DEFAULT_PORTS.get(dialect))
    found = DatabaseUrl(url, dialect, host, port, database, parts.query)
    secret = next((name for name in options if _SECRET_OPTION.search(name) and name != "passfile"), None)
    if parts.password is not None or secret is not None:
        what = f"the URL of {found.name} has a password" if secret is None else f"the URL has the option {secret}"
        hint = f"leave it out of the URL, and set the environment variable {PASSWORD}"
        raise UsageError(what, "the list of processes and the shell's history show it", hint)
    if not database:
        raise UsageError(f"{found.name} names no database", "a URL ends with one", f"{parts.scheme}://HOST/DATABASE")
    return found


def _host_of(host: str) -> str:
    return "localhost" if host.startswith(("/", "@")) else host  # the folder of a socket


def hide_secrets(text: str) -> str:
    """`text` without the passwords of the environment, and without all that looks like a secret."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, REMOVED)
    return redact(text)


@contextmanager
def password_for_libpq() -> Iterator[None]:
    """Let PostgreSQL's library find AIFX_DATABASE_PASSWORD in the variable that it reads."""
    own = os.environ.get(PASSWORD)
    with environment({} if own is None else {"PGPASSWORD": own}):
        yield


def missing_extra(error: ImportError) -> EnvironmentFault:
    """The extra `databases` is not installed."""
    why = f"the package {error.name} is not installed" if error.name else first_line(error)
    return EnvironmentFault("aifx cannot use databases here", why, install_command("databases"))


def _without_value(error: ValueError) -> str:
    """The reason without the quoted value, which may be part of a password with a character like "/" or "@"."""
    return redact(re.sub(r"'[^']*'", "…", str(error)))
