"""Records of requests and answers: a chain of digests in segments, and beside it the payloads, which can be erased.

    <run>/records/<server>/000000.chain      a line for each record; each has the digest of the line before
                           000000.payload    its request and answer, on the line of the same number
                           000001.chain ...  the next segment, once these have SEGMENT_BYTES

The chain has no content, only salted digests of it. The salt is in the payload, so that nobody can guess an erased
content by its digest. An erasure overwrites a payload in its place, while the server goes on to append.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pydantic_core

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.files import open_file
from aifx.core.json_files import cannot_write, parse_line, sync_directory

RECORDS = "records"
"""The folder of a run with the records of its servers."""

SEGMENT_BYTES = 64 << 20
"""Bytes of a chain and its payloads after which a new segment begins."""

SCHEMA_VERSION = 1

CHAIN, PAYLOAD = ".chain", ".payload"

ERASED = b"null"
"""The beginning of an erased payload. Spaces follow, up to the length that it had."""

FIRST = "0" * 64
"""The digest of the line before the first one."""

_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps makes an encoder each time

_decoder = json.JSONDecoder()

_PARTS = "request", "answer"
_PAYLOAD, _ANSWER = re.compile(rb'\{"salt":"([0-9a-f]{32})","request":'), b',"answer":'

_SEAL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}')
_SEAL_LEN = len(b',"sha256":""}') + 64
_KEYS = {"schema_version", "number", "id", "time", "model", "fingerprint", "request", "answer", "previous", "sha256"}


class _Segment:
    """The two files of a segment, which this process appends to, and how long they are."""

    def __init__(self, folder: Path, number: int) -> None:
        self.payload_path, self.chain_path = (folder / f"{number:06}{suffix}" for suffix in (PAYLOAD, CHAIN))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self.payload = open_file(self.payload_path, flags)
        try:
            fcntl.flock(self.payload, fcntl.LOCK_SH)  # an erasure cuts what a killed server left, and nothing else
            self.chain = open_file(self.chain_path, flags)
        except BaseException:
            os.close(self.payload)
            raise
        self.payload_size = self.chain_size = 0
        self._is_named = False

    @property
    def size(self) -> int:
        return self.payload_size + self.chain_size

    def append(self, payload: bytes, line: bytes) -> None:
        """Write a payload and its line, or neither. Raises OSError."""
        try:
            _write(self.payload, payload)
            _write(self.chain, line)
        except OSError:
            os.ftruncate(self.payload, self.payload_size)
            os.ftruncate(self.chain, self.chain_size)
            raise
        self.payload_size += len(payload)
        self.chain_size += len(line)

    def sync(self) -> None:
        """Make what was written survive a loss of power, payloads first: no line is without its payload."""
        os.fsync(self.payload)
        os.fsync(self.chain)
        if not self._is_named:
            sync_directory(self.chain_path.parent)
            self._is_named = True

    def close(self) -> None:
        os.close(self.payload)
        os.close(self.chain)


class RecordWriter:
    """Writes the records of a server. One thread appends, another one may call `sync`.

    What `append` has written survives the death of the process; what `sync` has flushed survives a loss of power.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Make a folder for this server below `folder`, and its first segment. Raises AifxError, OSError."""
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.folder = folder / f"{started}-{secrets.token_hex(4)}"
        self.folder.mkdir(parents=True)
        self._segment_bytes = segment_bytes
        self._number, self._next_segment, self._previous = 0, 0, FIRST
        self._lock = threading.Lock()
        self._full: list[_Segment] = []
        self._segment: _Segment | None = self._open()
        sync_directory(folder)
        self._is_synced = True

    def append(
        self, identity: str, time_s: float, model: str, fingerprint: str, request: bytes, answer: bytes, lost: int = 0
    ) -> None:
        """Write a record. Raises AifxError or OSError if the disk refuses it; the files are then as before.

        Args:
            identity: of the response.
            model: digest of the model version.
            request, answer: JSON, as `encoded` makes it.
            lost: records that could not be written since the one before.
        """
        salt = os.urandom(16).hex()
        body = encoded(
            {
                "schema_version": SCHEMA_VERSION,
                "number": self._number,
                "id": identity,
                "time": time_s,
                "model": model,
                "fingerprint": fingerprint,
                "request": _salted(salt, request),
                "answer": _salted(salt, answer),
                "lost": lost,
                "previous": self._previous,
            }
        )
        digest = sha256_of(body)
        line = body[:-1] + b',"sha256":"' + digest.encode() + b'"}\n'
        payload = b'{"salt":"%b","request":%b,"answer":%b}\n' % (salt.encode(), request, answer)
        with self._lock:
            segment = self._segment
            if segment is None or (segment.size and segment.size + len(payload) + len(line) > self._segment_bytes):
                if segment is not None:
                    _sync(segment)  # a loss of power must not take its end, and leave the beginning of the next one
                    self._full.append(segment)
                    self._segment = None
                self._segment = segment = self._open()
            try:
                segment.append(payload, line)
            except OSError as error:
                if _size_of(segment.payload) != segment.payload_size or _size_of(segment.chain) != segment.chain_size:
                    self._full.append(segment)  # it could not be cut, either: its end is no record
                    self._segment = None
                raise cannot_write(segment.payload_path, error, len(payload)) from error
            self._is_synced = False
            self._number += 1
            self._previous = digest

    def sync(self) -> None:
        """Make all records so far survive a loss of power. Raises AifxError, OSError."""
        with self._lock:
            if self._is_synced:
                return
            full, segment = list(self._full), self._segment
            self._is_synced = True
        try:
            for one in [*full, *([segment] if segment is not None else [])]:
                _sync(one)
        except BaseException:
            self._is_synced = False
            raise
        with self._lock:
            for one in full:
                self._full.remove(one)
                one.close()

    def close(self) -> None:
        """Flush and close the files. Raises AifxError, OSError if the disk refuses the flush."""
        try:
            self.sync()
        finally:
            for one in [*self._full, *([self._segment] if self._segment is not None else [])]:
                one.close()
            self._full, self._segment = [], None

    def _open(self) -> _Segment:
        number = self._next_segment
        self._next_segment += 1
        return _Segment(self.folder, number)


def _sync(segment: _Segment) -> None:
    try:
        segment.sync()
    except OSError as error:
        raise cannot_write(segment.payload_path, error) from error


def _write(handle: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(handle, data[written:])


def _size_of(handle: int) -> int:
    return os.fstat(handle).st_size


def encoded(document: Mapping[str, Any]) -> bytes:
    """A request or an answer as JSON, on one line."""
    try:
        return pydantic_core.to_json(document)  # a fifth of the time of Python's, which rows of numbers need
    except ValueError:  # half of a surrogate pair, which a client's JSON may have
        return _encode(document).encode()


def _salted(salt: str, data: bytes) -> str:
    return sha256_of(salt.encode() + data)


State = Literal["whole", "erased", "missing"]


@dataclass(frozen=True)
class Record:
    """A record of a server.

    Attributes:
        place: the file of the chain and the line, from 1.
        id: of the response.
        time: when the request came, in seconds since 1970.
        model: digest of the model version.
        lost: records before it that could not be written.
        state: of the payload: erased on demand, or missing because the disk lost power before it had it.
        request, answer: of a payload that is whole, otherwise empty.
    """

    place: str
    id: str
    time: float
    model: str
    fingerprint: str
    lost: int
    state: State
    request: Mapping[str, Any]
    answer: Mapping[str, Any]


def read_records(path: Path) -> Iterator[Record]:
    """The records of a server, or of all servers whose folders are below a folder, each checked.

    Raises DataError for a folder without records, a broken chain, and a payload that is not the one of its record.
    """
    count = 0
    for folder in record_folders(path):
        for record in _read_series(folder):
            count += 1
            yield record
    if not count:
        raise DataError(f"{path} has no record", "no answer was recorded", "aifx serve --set serve.log_requests=true")


def record_folders(path: Path) -> list[Path]:
    """The folders with segments at a path or below it. Raises DataError if there is none."""
    found = sorted({one.parent for one in path.rglob(f"*{CHAIN}")}) if path.is_dir() else []
    if not found:
        why = "a server makes such a folder with serve.log_requests: runs/NAME/records"
        hint = "aifx serve --set serve.log_requests=true"
        raise DataError(f"{path} is not a folder of records", why, hint)
    return found


def _read_series(folder: Path) -> Iterator[Record]:
    chains = sorted(folder.glob(f"*{CHAIN}"))
    previous: str | None = None
    number: int | None = None
    for index, chain in enumerate(chains):
        payloads = _payloads(chain.with_suffix(PAYLOAD))
        is_last = index == len(chains) - 1
        is_first = int(chain.stem) == 0 if chain.stem.isdigit() else False
        if index == 0 and is_first:
            previous, number = FIRST, 0
        for at, line in enumerate(_whole_lines(chain), 1):
            place = f"{chain}:{at}"
            entry = _entry(line)
            if entry is None:
                raise _broken(place, "it is not a record of aifx serve, or it was changed")
            # Older segments may have been deleted: the chain then begins with the oldest one that is left.
            if number is not None and (entry["number"], entry["previous"]) != (number, previous):
                raise _broken(place, f"it is not record {number}, which follows the one before: records are missing")
            number, previous = entry["number"] + 1, entry["sha256"]
            yield _record(entry, place, next(payloads, None), is_last=is_last)


def _entry(line: bytes) -> dict[str, Any] | None:
    seal, entry = _SEAL.fullmatch(line[-_SEAL_LEN:]), parse_line(line)
    if seal is None or entry is None or not entry.keys() >= _KEYS or entry["schema_version"] != SCHEMA_VERSION:
        return None
    return entry if sha256_of(line[:-_SEAL_LEN] + b"}").encode() == seal[1] else None


def _record(entry: Mapping[str, Any], place: str, payload: bytes | None, *, is_last: bool) -> Record:
    """The record of a line of the chain. Raises DataError if the payload is not that of the record."""
    known = {key: entry[key] for key in ("id", "time", "model", "fingerprint", "lost")}
    if payload is None or payload.startswith(ERASED):
        if payload is None and not is_last:
            raise _broken(place, "its payload is missing")
        return Record(place, **known, state="missing" if payload is None else "erased", request={}, answer={})
    parts = _parts(payload)
    if parts is None or any(_salted(parts[0], part) != entry[key] for key, part in zip(_PARTS, parts[1:], strict=True)):
        raise _broken(place, "its payload was changed")
    return Record(place, **known, state="whole", **dict(zip(_PARTS, map(json.loads, parts[1:]), strict=True)))


def _parts(payload: bytes) -> tuple[str, bytes, bytes] | None:
    """The salt, and request and answer as they were written; None if these are not JSON."""
    begin = _PAYLOAD.match(payload)
    if begin is None:
        return None
    try:
        text = payload[begin.end() :].decode()
        end = _decoder.raw_decode(text)[1]
    except (ValueError, RecursionError):
        return None
    request, rest = text[:end].encode(), text[end:].encode()
    salt = begin[1].decode()
    return (salt, request, rest[len(_ANSWER) : -1]) if rest.startswith(_ANSWER) and rest.endswith(b"}") else None


def _broken(place: str, why: str) -> DataError:
    return DataError(f"{place}: the records are damaged", why, "docs/serve.md has what a chain of records proves")


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without their ends. What a killed server left of a last one is none."""
    try:
        with open(open_file(path), "rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1]
    except OSError as error:
        hint = f"ls -l {path.parent}"
        raise DataError(f"{path} cannot be read", error.strerror or str(error), hint) from None


def _payloads(path: Path) -> Iterator[bytes]:
    return _whole_lines(path) if path.exists() else iter(())


def erase_payloads(folder: Path, is_erased: Callable[[Sequence[Record]], set[str]], *, dry_run: bool) -> list[str]:
    """Overwrite the payloads of records, segment by segment. Returns their places.

    What a killed server has written without a record goes, too. Repeated, it completes what a kill has cut short.

    Args:
        is_erased: the places of those to erase among the records of a segment.
    """
    found: list[str] = []
    without_records = set(folder.glob(f"*{PAYLOAD}"))
    for chain, group in groupby(_read_series(folder), lambda record: record.place.rpartition(":")[0]):
        own = list(group)
        places = is_erased([record for record in own if record.state == "whole"])
        found += [record.place for record in own if record.place in places]
        path = Path(chain).with_suffix(PAYLOAD)
        without_records.discard(path)
        if not dry_run:
            _overwrite(path, {int(place.rpartition(":")[2]) for place in places}, len(own))
    for path in () if dry_run else without_records:
        _overwrite(path, set(), 0)
    return found


def _overwrite(path: Path, numbers: set[int], count: int) -> None:
    """Overwrite these lines of a file of payloads, from 1, and cut what follows `count` lines if nobody writes it."""
    with suppress(FileNotFoundError), open(open_file(path, os.O_RDWR), "rb+", buffering=0) as file:
        handle, start = file.fileno(), 0
        for number, line in enumerate(_whole_lines(path), 1):
            if number <= count and (number in numbers or (line.startswith(ERASED) and line.strip() != ERASED)):
                os.lseek(handle, start, os.SEEK_SET)
                _write(handle, ERASED.ljust(len(line)))
            if number <= count:
                start += len(line) + 1
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, start)
        os.fsync(handle)
