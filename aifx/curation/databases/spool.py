"""Rows of a query on their way into a data set: a file of Arrow's that grows, and can be continued.

    rows.arrows        Arrow's IPC stream: the schema, then batches
    parts.json         the source, and the whole parts, each with its key, its rows, a digest of them and a SHA-256

A process or a server may go at any moment. If the query has a key, the next process asks the new snapshot of the
database whether it still has exactly the rows of the parts, cuts the file after the last part for which it has and
whose bytes are undamaged, and reads on behind it. So all rows are those of one snapshot, the last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from aifx.core.digests import Sha256
from aifx.core.errors import DataError
from aifx.core.files import read_file
from aifx.core.json_files import write_json
from aifx.core.json_values import encode_json
from aifx.core.parsing import parse_json
from aifx.core.plurals import counted
from aifx.core.progress import Reporter, report_progress
from aifx.curation.databases.query import Part, Query, Snapshot
from aifx.data.readers.query import CHECK

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

ROWS, PARTS = "rows.arrows", "parts.json"
PART_BYTES = 64 << 20


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


def source_in(folder: Path) -> str:
    """The source whose rows a folder holds; "a query" if the read ended before it was written."""
    try:
        return str(parse_json(read_file(folder / PARTS))["source"])
    except (OSError, ValueError, TypeError, KeyError):
        return "a query"


@dataclass(frozen=True)
class _Written:
    """A part in the file.

    Attributes:
        end: bytes of the file up to its end.
        sha256: of its bytes and of `part`.
    """

    end: int
    sha256: str
    part: Part


class Spool:
    """The files of a query in a folder, which one process at a time uses."""

    def __init__(self, folder: Path, query: Query) -> None:
        self._folder, self._query = folder, query
        self._parts: list[_Written] = []

    def fetch(self, snapshot: Snapshot) -> Fetched:
        """Read the rows that are missing. Raises what the snapshot raises; what was read stays for the next call."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with report_progress(f"reading {self._query.url.name}", None, "rows") as progress:
            before = self._resume(snapshot.schema)
            self._keep_unchanged(snapshot)
            kept = self._rows
            progress.advance(kept)
            with open(self._path, "r+b" if self._parts else "wb") as file:
                if self._parts:
                    file.truncate(self._parts[-1].end)
                    file.seek(0, os.SEEK_END)
                else:
                    self._record()
                self._read(snapshot, file, progress)
        return Fetched(self._path, self._rows, kept, before - kept)

    def remove(self) -> None:
        """Delete the files: the rows are in a version."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _rows(self) -> int:
        return sum(written.part.rows for written in self._parts)

    @property
    def _path(self) -> Path:
        return self._folder / ROWS

    def _resume(self, schema: Schema) -> int:
        """Take the parts of a call before, if they have these columns. Returns the number of their rows."""
        import pyarrow as pa

        if self._query.key is None:
            return 0
        try:
            found = parse_json(read_file(self._folder / PARTS))
            parts = [_Written(end, sha256, Part(**part)) for end, sha256, part in found["parts"]]
            parts = list(self._undamaged(parts))
            rows = sum(written.part.rows for written in parts)
            with open(self._path, "rb") as file:
                is_same = parts and pa.ipc.open_stream(file).schema.equals(schema, check_metadata=True)
        except (OSError, ValueError, TypeError, KeyError):
            return 0
        if not is_same:
            return 0
        self._parts = parts
        return rows

    def _undamaged(self, parts: list[_Written]) -> Iterator[_Written]:
        """The parts before the first damaged one."""
        with open(self._path, "rb") as file:
            for written in parts:
                digest = Sha256(file.read(max(written.end - file.tell(), 0)))
                digest.update(_as_bytes(written.part))
                if file.tell() != written.end or digest.hexdigest() != written.sha256:
                    return
                yield written

    def _keep_unchanged(self, snapshot: Snapshot) -> None:
        for index, written in enumerate(self._parts):
            if not snapshot.has_part(written.part):
                del self._parts[index:]
                self._record()
                return

    def _read(self, snapshot: Snapshot, file: IO[bytes], progress: Reporter) -> None:
        after = self._parts[-1].part.last if self._parts else None
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
        made = Part(part.after, part.last, part.rows, part.digest)
        part.sha256.update(_as_bytes(made))
        self._parts.append(_Written(file.tell(), part.sha256.hexdigest(), made))
        self._record()

    def _record(self) -> None:
        parts = [[one.end, one.sha256, asdict(one.part)] for one in self._parts]
        write_json(self._folder / PARTS, {"source": self._query.name, "parts": parts})

    def _check_key(self, batch: RecordBatch, before: Any) -> None:
        """Raises DataError if the key does not tell rows apart."""
        import pyarrow as pa
        import pyarrow.compute as pc

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


def _as_bytes(part: Part) -> bytes:
    return encode_json(asdict(part)).encode()


def _as_text(key: Any) -> str:
    import pyarrow as pa

    return str(key.cast(pa.string()).as_py())
