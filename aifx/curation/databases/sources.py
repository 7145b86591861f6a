"""Databases as sources of `aifx data add`: rows of a query on their way into a data set.

They are in a file of Arrow's that grows, and can be continued:

    rows.arrows        Arrow's IPC stream: the schema, then batches
    parts.json         the source, and the whole parts, each with its key, its rows, a digest of them and a SHA-256

A process or a server may go at any moment. If the query has a key, the next process asks the new snapshot of the
database whether it still has exactly the rows of the parts, cuts the file after the last part for which it has and
whose bytes are undamaged, and reads on behind it. So all rows are those of one snapshot, the last.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import RecordBatch, Schema

from aifx.core.digests import Sha256, sha256_of
from aifx.core.errors import DataError, UsageError
from aifx.core.files import holding, read_file
from aifx.core.json_files import write_json
from aifx.core.json_values import encode_json, plain
from aifx.core.parsing import check_utf8, parse_json
from aifx.core.plurals import counted
from aifx.core.progress import Reporter, report_progress
from aifx.curation.databases.postgresql import open_snapshot
from aifx.curation.databases.query import Part, Query, Snapshot, open_other, parse_database_url
from aifx.curation.work_folders import READ, holding_dataset, steps_folder
from aifx.data.readers.columnar import CHECK
from aifx.data.readers.sources import Listing, SourceFile
from aifx.data.versions.catalog import Catalog

DATABASES = ("postgresql", "postgres", "sqlite", "duckdb", "mysql", "mariadb", "oracle", "mssql", "snowflake")
"""Schemes whose URL is no file's."""

ROWS, PARTS = "rows.arrows", "parts.json"
PART_BYTES = 64 << 20


def parse_query(sources: list[str], sql: str, key: str | None) -> Query:
    """The query of a command line. Raises UsageError."""
    if len(sources) != 1 or "://" not in sources[0]:
        why = f"{sources[0]!r} is none" if len(sources) == 1 else f"there are {len(sources)} sources"
        raise UsageError("--query is for the URL of one database", why, "postgresql://HOST/DATABASE --query SQL")
    if not sql.strip():
        raise UsageError("--query is empty", "it is SQL that gives rows", "--query 'SELECT * FROM table'")
    check_utf8("SQL of --query", sql)
    return Query(parse_database_url(sources[0]), sql.strip().rstrip(";").rstrip(), key)


def check_no_database(sources: list[str]) -> None:
    """Raise UsageError for the URL of a database."""
    for source in sources:
        scheme = source.partition("://")[0].partition("+")[0].lower() if "://" in source else ""
        if scheme in DATABASES:
            url = parse_database_url(source)
            hint = f"aifx data add NAME {url.name} --query 'SELECT * FROM table'"
            raise UsageError(f"{url.name} is a database", "its rows are those of a query", hint)


def interrupted_reads(catalog: Catalog, name: str) -> dict[Path, str]:
    """The folders with rows of queries that were not read to their end, and the source of each."""
    return {folder: _source_in(folder) for folder in sorted(steps_folder(name, catalog).glob(f"{READ}*"))}


def _source_in(folder: Path) -> str:
    """The source whose rows a folder holds; "a query" if the read ended before it was written."""
    try:
        return str(parse_json(read_file(folder / PARTS))["source"])
    except (OSError, ValueError, TypeError, KeyError):
        return "a query"


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
        shutil.rmtree(self._folder, ignore_errors=True)


def _open(query: Query) -> AbstractContextManager[Snapshot]:
    return open_snapshot(query) if query.url.is_postgresql else open_other(query)


@dataclass(frozen=True)
class Fetched:
    """The rows of a query on this machine.

    Attributes:
        kept: rows of a call before that the database still has.
        again: rows of a call before that were read again, because rows between them changed.
    """

    path: Path
    rows: int
    kept: int
    again: int


class Spool:
    """The files of a query in a folder, which one process at a time uses."""

    def __init__(self, folder: Path, query: Query) -> None:
        self._folder, self._query = folder, query
        self._parts: list[Part] = []

    def fetch(self, snapshot: Snapshot) -> Fetched:
        """Read the rows that are missing. Raises what the snapshot raises; what was read stays for the next call."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with report_progress(f"reading {self._query.url.name}", None, "rows") as progress:
            before = self._undamaged(snapshot.schema)
            self._parts = list(takewhile(snapshot.has_part, before))
            if len(self._parts) < len(before):
                self._record()
            kept = self._rows
            progress.advance(kept)
            with open(self._path, "r+b" if self._parts else "wb") as file:
                if self._parts:
                    file.truncate(self._parts[-1].end)
                    file.seek(0, os.SEEK_END)
                else:
                    self._record()
                self._read(snapshot, file, progress)
        return Fetched(self._path, self._rows, kept, sum(part.rows for part in before) - kept)

    @property
    def _rows(self) -> int:
        return sum(part.rows for part in self._parts)

    @property
    def _path(self) -> Path:
        return self._folder / ROWS

    def _undamaged(self, schema: Schema) -> list[Part]:
        """The parts of a call before, up to the first damaged one; none if they have other columns."""
        if self._query.key is None:
            return []
        found = []
        try:
            parts = [Part(**part) for part in parse_json(read_file(self._folder / PARTS))["parts"]]
            with open(self._path, "rb") as file:
                for part in parts:
                    digest = Sha256(file.read(max(part.end - file.tell(), 0)))
                    if file.tell() != part.end or _sealed(part, digest).sha256 != part.sha256:
                        break
                    found.append(part)
                file.seek(0)
                is_same = found and pa.ipc.open_stream(file).schema.equals(schema, check_metadata=True)
        except (OSError, ValueError, TypeError, KeyError):
            return []
        return found if is_same else []

    def _read(self, snapshot: Snapshot, file: IO[bytes], progress: Reporter) -> None:
        after = self._parts[-1].last if self._parts else None
        part = _Growing(after, None)
        if not self._parts:
            part.write(file, snapshot.schema.serialize())
        for batch in snapshot.read(after):
            self._check_key(batch, part.last_key)
            part.write(file, batch.serialize())
            part.add(batch, self._query.key)
            progress.advance(len(batch))
            if part.bytes >= PART_BYTES and part.can_end:
                self._end(file, part)
                part = _Growing(part.last, part.last_key)
        self._end(file, part)

    def _end(self, file: IO[bytes], part: _Growing) -> None:
        """Record a part, after its rows are on the disk."""
        file.flush()
        os.fsync(file.fileno())
        made = Part(part.after, part.last, part.rows, part.digest, file.tell(), "")
        self._parts.append(_sealed(made, part.sha256))
        self._record()

    def _record(self) -> None:
        write_json(self._folder / PARTS, {"source": self._query.name, "parts": plain(self._parts)})

    def _check_key(self, batch: RecordBatch, before: Any) -> None:
        """Raise DataError if two rows have the same key."""
        if self._query.key is None or not len(batch):
            return
        keys = batch.column(self._query.key)
        if CHECK in batch.schema.names:
            keys = keys.filter(pc.greater_equal(batch.column(CHECK), 0))
        what, hint = f"--key {self._query.key} does not tell rows apart", "--key COLUMN, of a column with unique values"
        if keys.null_count:
            raise DataError(what, f"there is none in {counted(keys.null_count, 'row')} or more", hint)
        if before is not None:
            keys = pa.concat_arrays([pa.array([before], keys.type), keys])
        same = pc.equal(keys[1:], keys[:-1])
        if pc.any(same).as_py():
            twice = keys[1:].filter(same)[0]
            raise DataError(what, f"two rows have {_as_text(twice)!r}", hint)


class _Growing:
    """A part that is being read."""

    def __init__(self, after: str | None, last_key: Any) -> None:
        self.after = self.last = after
        self.last_key = last_key
        self.rows = self.bytes = self.digest = 0
        self.can_end = False
        self.sha256 = Sha256()

    def write(self, file: IO[bytes], data: Any) -> None:
        file.write(data)
        self.sha256.update(data)

    def add(self, batch: RecordBatch, key: str | None) -> None:
        self.rows += len(batch)
        self.bytes += batch.nbytes
        if key is None or not len(batch):
            return
        checks = batch.column(CHECK).to_numpy()
        self.digest = (self.digest + int(np.sum(checks.view(np.uint64), dtype=np.uint64))) % 2**64
        last = batch.column(key)[-1]
        self.can_end = last.is_valid  # the key of a row that cannot be taken may be missing
        if last.is_valid:
            self.last_key, self.last = last, _as_text(last)


def _sealed(part: Part, digest: Any) -> Part:
    """The part with its `sha256`. `digest`: of its bytes."""
    digest.update(encode_json(replace(part, sha256="")).encode())
    return replace(part, sha256=digest.hexdigest())


def _as_text(key: Any) -> str:
    return str(key.cast(pa.string()).as_py())
