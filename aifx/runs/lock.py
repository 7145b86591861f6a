"""One process holds a run at a time. The kernel releases the lock when that process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from aifx.core.errors import RunBusy
from aifx.core.files import open_file, read_file
from aifx.core.parsing import parse_json
from aifx.core.project import RunDirectory
from aifx.core.redaction import redact_arguments


@dataclass(frozen=True)
class Holder:
    """Who holds, or last held, a run."""

    pid: int
    host: str
    command: str
    since: float  # Unix time

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host} ({self.command}), since {since}"


class RunLock:
    """Hold a run: `with RunLock(run): ...`. Raises RunBusy, which names the holder, if another process has it.

    A process that is forked (without exec) while this one holds the run holds it too, until it ends.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._handle: int | None = None

    def acquire(self) -> None:
        self.run.path.mkdir(parents=True, exist_ok=True)
        handle = open_file(self.run.lock, os.O_RDWR | os.O_CREAT)
        # Whoever only looks (`is_held`) takes a shared lock for an instant: wait that out before calling the run busy.
        for attempt in range(10):
            if _try_lock(handle, fcntl.LOCK_EX):
                break
            if attempt < 9:
                time.sleep(0.03)
        else:
            os.close(handle)
            raise _busy(self.run)
        self._handle = handle
        who = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": shlex.join(_command()),
            "since": time.time(),
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(who).encode() + b"\n", 0)

    def release(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_held(run: RunDirectory) -> bool:
    """Whether a process, of any host that shares the file system's locks, holds the run now."""
    try:
        handle = open_file(run.lock)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def holder(run: RunDirectory) -> Holder | None:
    """The process that holds the run or held it last; None if none ever did."""
    try:
        who: Any = parse_json(read_file(run.lock))
        return Holder(int(who["pid"]), str(who["host"]), str(who["command"]), float(who["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until nobody else holds the lock file `path`, then hold it alone. The file stays."""
    handle = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _command() -> list[str]:
    return redact_arguments([os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]])


def _busy(run: RunDirectory) -> RunBusy:
    who = holder(run)
    hint = f"aifx runs watch {run.name}    (or train another run: aifx train --run NAME)"
    return RunBusy(
        f"run {run.name!r} is being trained by another process",
        f"it is held by {who or 'a process that just started'}",
        hint,
    )
