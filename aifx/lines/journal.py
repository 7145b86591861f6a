"""The journal of a line: what was started, how it ended, and what people decided, one JSON record per line.

    line/journal.jsonl

A record is on the disk before the next act begins. Each record has the digest of the one before, so that a changed,
missing or moved record is found. A writer that was killed leaves at most a last line without its end: readers ignore
it, and the next writer cuts it. Several processes may write: `aifx line approve` appends while a tick runs.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aifx.core.digests import sha256_of_json
from aifx.core.errors import DataError
from aifx.core.files import make_folders, open_file
from aifx.core.json_files import cannot_write, encode, sync_directory
from aifx.core.json_values import encode_json, plain
from aifx.core.parsing import parse_json

JOURNAL = "journal.jsonl"

Kind = Literal[
    "tick",  # what names mean from here on
    "started",  # an attempt is about to begin
    "repeated",  # the same attempt is about to begin again
    "ended",
    "reported",  # a station cannot go on with this key: written once
    "approved",
    "retry",
    "skip",
    "paused",
    "resumed",
]


class DamagedJournal(DataError):
    """A record of the journal was changed, moved or removed."""


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        number: from 1.
        time: Unix time by the clock of the machine that wrote it. It can run backwards; `number` cannot.
        station: name of the station, empty if the record is about the whole line.
        key: digest of what the station works on, see `aifx.lines.keys`.
        attempt: id under which the commands of the station work.
        facts: what else the record says, by its kind.
        previous: digest of the record before.
    """

    number: int
    time: float
    kind: Kind
    station: str = ""
    key: str = ""
    attempt: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    previous: str = ""

    def document(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "facts": plain(self.facts)}

    @property
    def digest(self) -> str:
        return sha256_of_json(self.document())


class Journal:
    """The journal in a folder, which may not exist yet. An object reads each record once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self._records: list[Record] = []
        self._size, self._last = 0, ""

    def records(self) -> tuple[Record, ...]:
        """All whole records in order. Raises DamagedJournal, which names the line, OSError."""
        try:
            handle = open_file(self.path)
        except FileNotFoundError:
            return ()
        try:
            self._read(handle)
        finally:
            os.close(handle)
        return tuple(self._records)

    def append(self, kind: Kind, station: str = "", key: str = "", attempt: str = "", **facts: Any) -> Record:
        """Write a record, which is on the disk when this returns.

        Raises DamagedJournal, and EnvironmentFault if the disk is full; then no part of the record stays.
        """
        make_folders(self.folder, below=self.folder.parent)
        handle = open_file(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._read(handle)
            os.ftruncate(handle, self._size)  # a record that a killed process did not finish
            if not self._records:
                sync_directory(self.folder)
                sync_directory(self.folder.parent)
            record = Record(len(self._records) + 1, time.time(), kind, station, key, attempt, plain(facts), self._last)
            digest = record.digest
            data = encode(encode_json({**record.document(), "digest": digest}, ensure_ascii=False) + "\n")
            try:
                _write(handle, data, self._size)
            except OSError as e:
                os.ftruncate(handle, self._size)
                raise cannot_write(self.path, e, len(data)) from e
        finally:
            os.close(handle)
        self._records.append(record)
        self._size, self._last = self._size + len(data), digest
        return record

    def _read(self, handle: int) -> None:
        """Read what was added since the last call."""
        if os.fstat(handle).st_size < self._size:  # somebody put an older copy at its place
            self._records, self._size, self._last = [], 0, ""
        added = bytearray()
        while part := os.pread(handle, 1 << 20, self._size + len(added)):
            added += part
        for line in bytes(added[: added.rfind(b"\n") + 1]).splitlines(keepends=True):
            number = len(self._records) + 1
            try:
                record, digest = _parse(line, number, self._last)
            except ValueError as e:
                hint = "put back a copy of the file; without it, move the folder away and run the line again"
                raise DamagedJournal(f"{self.path}:{number} is damaged", str(e), hint) from None
            self._records.append(record)
            self._size, self._last = self._size + len(line), digest


def _write(handle: int, data: bytes, at: int) -> None:
    os.lseek(handle, at, os.SEEK_SET)
    while data:
        data = data[os.write(handle, data) :]
    os.fsync(handle)


def _parse(line: bytes, number: int, previous: str) -> tuple[Record, str]:
    """The record in a line, and its digest. Raises ValueError with the reason if it is not the expected one."""
    try:
        doc = parse_json(line)
        digest = doc.pop("digest")
        record = Record(**doc)
        is_whole = digest == record.digest
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise ValueError("it is no record") from e
    if not is_whole:
        raise ValueError("the record was changed")
    if record.number != number or record.previous != previous:
        raise ValueError(f"record {number} should be here, and record {record.number} is")
    return record, digest
