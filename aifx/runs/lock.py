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
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from aifx.core.errors import RunBusy
from aifx.core.files import open_file, read_file
from aifx.core.parsing import parse_json
from aifx.core.project import RunDirectory
from aifx.core.redaction import redact_arguments

TRIES = 10
"""Times that a run must be found held before it is called busy, for its process may be about to end."""
LOOKING_S = 60.0
"""Longest time that a process that only looks may keep a run, such as one that was stopped."""


@dataclass(frozen=True)
class Holder:
    """The content of `lock`: the process that holds the run, or the last one that did."""

    pid: int
    host: str
    command: str
    since: float  # Unix time

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host} ({self.command}), since {since}"


@contextmanager
def hold_run(run: RunDirectory) -> Iterator[None]:
    """Hold a run: `with hold_run(run): ...`. Raises RunBusy, which names the holder, if another process has it.

    A process that is forked (without exec) while this one holds the run holds it too, until it ends.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    handle = open_file(run.lock, os.O_RDWR | os.O_CREAT)
    try:
        num_refused, until = 0, time.monotonic() + LOOKING_S
        while not _try_lock(handle, fcntl.LOCK_EX):
            # Whoever only looks (`is_held`) has a shared lock, on a busy machine for longer than an instant. A shared
            # lock is refused only if a process holds the run.
            if _try_lock(handle, fcntl.LOCK_SH):
                fcntl.flock(handle, fcntl.LOCK_UN)
            else:
                num_refused += 1
            if (num_refused < TRIES or not _is_named(holder(run))) and time.monotonic() < until:
                time.sleep(0.03)
                continue
            what = f"run {run.name!r} is being trained by another process"
            why = f"it is held by {holder(run) or 'a process that just started'}"
            raise RunBusy(what, why, f"aifx runs watch {run.name}    (or train another run: aifx train --run NAME)")
        command = redact_arguments([os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]])
        who = Holder(os.getpid(), socket.gethostname(), shlex.join(command), time.time())
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(who)).encode() + b"\n", 0)
        yield
    finally:
        os.close(handle)


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


def _is_named(who: Holder | None) -> bool:
    """Whether it can be who holds the run now: a process that just took it has not written its name yet."""
    import psutil  # here, since most processes find the run free

    return who is not None and (who.host != socket.gethostname() or psutil.pid_exists(who.pid))


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
