"""Databases as sources of `aifx data add`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from aifx.core.digests import sha256_of
from aifx.core.errors import UsageError
from aifx.core.json_values import encode_json
from aifx.core.locks import holding
from aifx.curation.databases.other import open_other
from aifx.curation.databases.postgresql import open_snapshot
from aifx.curation.databases.query import Query, Snapshot
from aifx.curation.databases.spool import Fetched, Spool, source_in
from aifx.curation.databases.urls import parse_database_url
from aifx.curation.work_folders import holding_dataset, steps_folder
from aifx.data.readers.sources import Listing, SourceFile
from aifx.data.versions.catalog import Catalog

DATABASES = ("postgresql", "postgres", "sqlite", "duckdb", "mysql", "mariadb", "oracle", "mssql", "snowflake")
"""Schemes whose URL is no file's."""

READ = ".query-"
"""The beginning of the name of a folder with the rows of a query."""


def parse_query(sources: list[str], sql: str, key: str | None) -> Query:
    """The query of a command line. Raises UsageError."""
    if len(sources) != 1 or "://" not in sources[0]:
        why = f"{sources[0]!r} is none" if len(sources) == 1 else f"there are {len(sources)} sources"
        raise UsageError("--query is for the URL of one database", why, "postgresql://HOST/DATABASE --query SQL")
    if not sql.strip():
        raise UsageError("--query is empty", "it is SQL that gives rows", "--query 'SELECT * FROM table'")
    try:
        sql.encode()
    except UnicodeEncodeError as e:
        raise UsageError("--query is not UTF-8", f"at character {e.start + 1:,}", "write it in a UTF-8 shell") from None
    return Query(parse_database_url(sources[0]), sql.strip().rstrip(";").rstrip(), key)


def check_no_database(sources: list[str]) -> None:
    """Raises UsageError for the URL of a database."""
    for source in sources:
        scheme = source.partition("://")[0].partition("+")[0].lower() if "://" in source else ""
        if scheme in DATABASES:
            url = parse_database_url(source)
            hint = f"aifx data add NAME {url.name} --query 'SELECT * FROM table'"
            raise UsageError(f"{url.name} is a database", "its rows are those of a query", hint)


def interrupted_reads(catalog: Catalog, name: str) -> dict[Path, str]:
    """The folders with rows of queries that were not read to their end, and the source of each."""
    return {folder: source_in(folder) for folder in sorted(steps_folder(name, catalog).glob(f"{READ}*"))}


def _open(query: Query) -> AbstractContextManager[Snapshot]:
    return open_snapshot(query) if query.url.is_postgresql else open_other(query)


class QueryFetch:
    """The rows of a query, in a folder of the data set until they are in a version."""

    def __init__(self, query: Query, catalog: Catalog, name: str) -> None:
        self._query, self._name, self._catalog = query, name, catalog
        digest = sha256_of(encode_json([query.name, query.key]))
        self._folder = steps_folder(name, catalog) / f"{READ}{digest}"
        self._spool = Spool(self._folder, query)
        self._held = ExitStack()

    @contextmanager
    def fetched(self) -> Iterator[tuple[Listing, Fetched]]:
        """Read the rows that are not on this machine yet. In the block, no other process uses or deletes them.

        Raises FolderBusy, EnvironmentFault, UsageError, DataError. What was read stays for the next call.
        """
        with self._held:
            with holding_dataset(self._name, self._catalog, "reads rows for it"), _open(self._query) as snapshot:
                self._held.enter_context(holding(self._folder, f"the read of {self._query.name}", "adds its rows"))
                fetched = self._spool.fetch(snapshot)
            yield Listing((self._file(fetched.path),), ()), fetched

    @contextmanager
    def described(self) -> Iterator[Listing]:
        """The query without rows. Raises EnvironmentFault, UsageError."""
        with tempfile.TemporaryDirectory() as folder, _open(self._query) as snapshot:
            path = Path(folder) / "rows.arrows"
            path.write_bytes(snapshot.schema.serialize())
            yield Listing((self._file(path),), ())

    def _file(self, path: Path) -> SourceFile:
        found = os.stat(path)
        return SourceFile(
            name=self._query.name,
            location=str(path),
            format="query",
            compression="",
            bytes=found.st_size,
            changed=found.st_mtime_ns,
            query=self._query.sql,
        )

    def remove(self) -> None:
        """Delete the rows, which are in a version."""
        self._held.close()
        self._spool.remove()
