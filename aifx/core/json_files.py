"""Writing files that are whole or absent, and lines that are whole or cut."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aifx.core.errors import EnvironmentFault, could_not
from aifx.core.files import RECORDS_LIMIT, open_file, read_file, replace_file
from aifx.core.json_values import encode_json
from aifx.core.os_errors import FULL, PASSING, errno_of, in_brief, naming, refusal_in
from aifx.core.parsing import parse_json

logger = logging.getLogger(__name__)


def write_json(path: Path, doc: Mapping[str, Any]) -> None:
    """Put `doc` at `path`, whole or not at all."""
    write_text(path, encode_json(doc, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`, whole or not at all."""
    replace_file(path, encode(text))


def encode(text: str) -> bytes:
    """UTF-8; what is no Unicode (a file's name, an argument) as the escape that JSON and TOML strings have for it."""
    return text.encode("utf-8", "backslashreplace")


def sync_directory(path: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """The records of JSON lines; a torn line is not a record."""
    records = (parse_line(line) for line in data[: data.rfind(b"\n") + 1].split(b"\n"))
    return [r for r in records if r is not None]


def parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:  # of JSON and of UTF-8
        return None
    return record if isinstance(record, dict) else None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file that may be in the middle of being written. No file, no records."""
    try:
        return parse_lines(read_file(path, limit=RECORDS_LIMIT))
    except FileNotFoundError:
        return []


class JsonLines:
    """A file of JSON lines that grows by whole lines, from any thread.

    Each record is one write(2) of one line, so what SIGKILL can leave behind is at most one line without its end, and
    opening cuts that. Raises EnvironmentFault when the machine refuses to write; the file then ends with the record
    before.

    Args:
        is_patient: keep records in memory that a disk refuses which is full or fails, up to HELD_BYTES, and write them
            in order once it takes them. `sync` and `close` raise if it still refuses.
    """

    HELD_BYTES = 64 << 20
    RETRY_S = 1.0

    def __init__(self, path: Path, *, is_patient: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._is_patient = is_patient
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._retry_at = 0.0
        self._lock = threading.Lock()
        self._handle = open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.cut(len)

    def cut(self, keep: Callable[[bytes], int]) -> None:
        """Truncate the file: of the bytes up to the last line end, `keep` returns how many stay."""
        with self._lock:
            self._write_held()
        data = read_file(self.path, limit=RECORDS_LIMIT)
        self._size = keep(data[: data.rfind(b"\n") + 1])
        if self._size != len(data):
            os.ftruncate(self._handle, self._size)

    def append(self, record: Mapping[str, Any]) -> None:
        line = encode(encode_json(record, ensure_ascii=False) + "\n")
        with self._lock:
            self._held.append(line)
            self._held_bytes += len(line)
            may_hold = self._is_patient and self._held_bytes <= self.HELD_BYTES
            if may_hold and time.monotonic() < self._retry_at:
                return
            try:
                self._write_held()
            except (EnvironmentFault, OSError) as fault:
                if not may_hold or refusal_in(fault) not in PASSING:
                    self._held.pop()
                    self._held_bytes -= len(line)
                    raise
                if not self._retry_at:
                    reason = in_brief(fault)
                    logger.warning(f"{reason}; aifx keeps what it would write and tries again")
                self._retry_at = time.monotonic() + self.RETRY_S

    def _write_held(self) -> None:
        """Write the held lines in order. Raises EnvironmentFault at the first that is refused."""
        while self._held:
            line, written = self._held[0], 0
            try:
                while written < len(line):
                    written += os.write(self._handle, line[written:])
            except OSError as e:
                with suppress(OSError):
                    os.ftruncate(self._handle, self._size)
                raise cannot_write(self.path, e, len(line)) from e
            self._size += len(line)
            self._held_bytes -= len(self._held.popleft())
        if self._retry_at:
            logger.warning(f"{self.path} is written again, and nothing of it is missing")
            self._retry_at = 0.0

    def sync(self) -> None:
        """Make every record so far survive a loss of power. From any thread; others may write meanwhile, or close.

        Raises EnvironmentFault also if the file was deleted: what it holds would be lost when it is closed.
        """
        with self._lock:
            if self._handle < 0:
                return
            self._write_held()
            handle = os.dup(self._handle)
        try:
            os.fsync(handle)
            is_deleted = os.fstat(handle).st_nlink == 0
        except OSError as e:
            raise cannot_write(self.path, e) from e
        finally:
            os.close(handle)
        if is_deleted:
            why = "something else deleted it while it was open, and its records are lost"
            raise EnvironmentFault(f"{self.path} is gone", why, f"ls {self.path.parent}")

    def close(self) -> None:
        """Close the file. Raises EnvironmentFault if the disk refuses what was held back."""
        with self._lock:
            handle = self._handle
            if handle < 0:
                return
            try:
                self._write_held()
            finally:
                self._handle = -1
                os.close(handle)


def cannot_write(path: Path, error: OSError, needed: int = 0) -> Exception:
    """The error to raise instead of `error`, which writing `needed` bytes to `path` met."""
    if error.errno in FULL:
        return disk_full(path, needed)
    number = errno_of(error)
    return error if number is None else could_not(f"could not write {path}", error, number, str(path))


def disk_full(path: Path, needed: int) -> EnvironmentFault:
    """The error of a full disk: what could not be written, its size, and the room that is left."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    needs = [f"{readable_bytes(needed)} needed"] if needed else []
    with suppress(OSError):
        stat = os.statvfs(there)
        needs.append(f"{readable_bytes(stat.f_bavail * stat.f_frsize)} free")
    why = ": ".join(["the disk is full", *filter(None, [", ".join(needs)])])
    return EnvironmentFault(f"no room to write {path}", why, f"df -h {there}")


def readable_bytes(count: float) -> str:
    """A size for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
