"""A query whose rows `aifx data add` reads, and the interface of the databases that answer it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aifx.core.digests import sha256_of
from aifx.core.errors import UsageError
from aifx.curation.databases.urls import DatabaseUrl

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

ROW_BYTES = 128 << 20
"""Of the largest row. A larger one stays in the database, and the quarantine has its number."""


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
    """Rows that were read, in the order of the key.

    Attributes:
        after: the key before the first, as text; None if there is none.
        last: the key of the last, as text; None without key.
        digest: the sum of the hashes of the rows, modulo 2**64.
    """

    after: str | None
    last: str | None
    rows: int
    digest: int


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
