"""The requests of a server: those of this moment, and a line of JSON for each in the access log."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aifx.core.errors import UsageError

MAX_WAITING = 10_000
"""Most lines that wait for a disk or a terminal; more are counted and left out."""


@dataclass
class AccessRecord:
    """The line of a request in the access log. A server that knows more of its requests has a subclass."""

    id: str
    client: str
    method: str
    path: str
    status: int = 0
    duration_s: float | None = None
    error: str | None = None

    def line(self) -> str:
        known = {key: value for key, value in vars(self).items() if value not in (None, [], False)}
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in known.items()}
        # ASCII: control characters of a client's path cannot reach a terminal.
        return json.dumps({"time": round(time.time(), 3), **rounded})


class AccessLog:
    """Writes lines in a thread of its own, since a reader of stderr may stall.

    It writes past `sys.stderr`: a thread that waits in there holds a lock, without which the process cannot end.
    """

    def __init__(self, path: Path | None, hint: str = "") -> None:
        """`path`: a file to append to; stderr if None. `hint`: how to name another. Raises UsageError."""
        try:
            self._file = open(os.dup(sys.stderr.fileno()) if path is None else path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"{path} cannot be written", error.strerror or str(error), hint) from None
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def write(self, record: AccessRecord) -> None:
        try:
            self._lines.put_nowait(record.line())
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(2.0)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            lost, self._lost = self._lost, 0
            text = f"{line}\n"
            if lost:
                text += json.dumps({"time": round(time.time(), 3), "lines_lost": lost}) + "\n"
            rest = text.encode()
            with contextlib.suppress(OSError):
                while rest:
                    rest = rest[os.write(self._file.fileno(), rest) :]
        self._file.close()


@dataclass(kw_only=True)
class Traffic:
    """The requests of a server at this moment. A server that logs them, or drains an engine, has a subclass.

    Attributes:
        is_draining: no more requests are taken.
        unfinished: requests by the network of their client.
    """

    is_draining: bool = False
    in_flight: int = 0
    unfinished: Counter[str] = field(default_factory=Counter)

    def record(self, id: str, client: str, method: str, path: str) -> AccessRecord:
        """The record of a request that begins."""
        return AccessRecord(id, client, method, path)

    def ended(self, record: AccessRecord, headers: Mapping[bytes, bytes]) -> None:
        """Log and count a request that has ended."""

    def drain(self) -> None:
        """Take no more requests."""
        self.is_draining = True

    def stop(self) -> None:
        """End what answers the requests that still run. In a thread."""

    def close(self) -> None:
        """Release what the server has opened, after its last answer."""
