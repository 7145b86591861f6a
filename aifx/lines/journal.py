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


@dataclass(frozen=True)
class Place:
    """A record's line in the journal: its first byte, the byte after it, and number and digest of the record."""

    begin: int = 0
    end: int = 0
    number: int = 0
    digest: str = ""


class Journal:
    """The journal in a folder, which may not exist yet. An object reads each record once.

    Attributes:
        place: of the last record that was read.
        resets: times that another journal was found at its place, and read from its first record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.place, self.resets = Place(), 0
        self._records: list[Record] = []

    def begin_after(self, place: Place) -> bool:
        """Leave out the records up to a place. Returns whether the journal has that record there."""
        try:
            handle = open_file(self.path)
        except FileNotFoundError:
            return False
        try:
            line = os.pread(handle, max(0, place.end - place.begin), place.begin)
            record, digest = _parse(line)
        except (OSError, ValueError):
            return False
        finally:
            os.close(handle)
        if len(line) != place.end - place.begin or (record.number, digest) != (place.number, place.digest):
            return False
        self.place = place
        return True

    def records(self) -> tuple[Record, ...]:
        """The whole records in order: all, unless `begin_after` was called. Raises DamagedJournal, OSError."""
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
            os.ftruncate(handle, self.place.end)  # a record that a killed process did not finish
            if not self.place.number:
                sync_directory(self.folder)
                sync_directory(self.folder.parent)
            before = self.place
            given = (kind, station, key, attempt, plain(facts))
            record = Record(before.number + 1, time.time(), *given, before.digest)
            digest = record.digest
            data = encode(encode_json({**record.document(), "digest": digest}, ensure_ascii=False) + "\n")
            try:
                _write(handle, data, before.end)
            except OSError as e:
                os.ftruncate(handle, before.end)
                raise cannot_write(self.path, e, len(data)) from e
        finally:
            os.close(handle)
        self._take(record, digest, len(data))
        return record

    def _take(self, record: Record, digest: str, size: int) -> None:
        self._records.append(record)
        self.place = Place(self.place.end, self.place.end + size, record.number, digest)

    def _read(self, handle: int) -> None:
        """Read what was added since the last call."""
        if os.fstat(handle).st_size < self.place.end:  # somebody put an older copy at its place
            self._records, self.place, self.resets = [], Place(), self.resets + 1
        added = bytearray()
        while part := os.pread(handle, 1 << 20, self.place.end + len(added)):
            added += part
        for line in bytes(added[: added.rfind(b"\n") + 1]).splitlines(keepends=True):
            number = self.place.number + 1
            try:
                record, digest = _parse(line)
                if record.number != number or record.previous != self.place.digest:
                    raise ValueError(f"record {number} should be here, and record {record.number} is")
            except ValueError as e:
                hint = "put back a copy of the file; without it, move the folder away and run the line again"
                raise DamagedJournal(f"{self.path}:{number} is damaged", str(e), hint) from None
            self._take(record, digest, len(line))


def _write(handle: int, data: bytes, at: int) -> None:
    os.lseek(handle, at, os.SEEK_SET)
    while data:
        data = data[os.write(handle, data) :]
    os.fsync(handle)


def _parse(line: bytes) -> tuple[Record, str]:
    """The record in a line, and its digest. Raises ValueError with the reason if it is none, or was changed."""
    try:
        doc = parse_json(line)
        digest = doc.pop("digest")
        record = Record(**doc)
        is_whole = digest == sha256_of_json(doc)  # of the parsed line: `document` would take most of the time
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise ValueError("it is no record") from e
    if not is_whole:
        raise ValueError("the record was changed")
    return record, digest
