"""One line of JSON per request, without its prompt unless `serve.log_prompts`."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from aifx.core.errors import UsageError
from aifx.serving.requests import Usage

MAX_WAITING = 10_000
"""Most lines that wait for a disk or a terminal; more are counted and left out."""


@dataclass
class AccessRecord:
    """The line of a request in the access log."""

    id: str
    client: str
    method: str
    path: str
    status: int = 0
    model: str | None = None
    stream: bool = False
    rows: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reasons: list[str] = field(default_factory=list)
    queue_s: float | None = None
    first_token_s: float | None = None
    duration_s: float | None = None
    error: str | None = None
    prompt: object = None

    def add(self, usage: Usage) -> None:
        """Count what one of the answers cost."""
        self.prompt_tokens = (self.prompt_tokens or 0) + usage.prompt_tokens
        self.completion_tokens = (self.completion_tokens or 0) + usage.completion_tokens
        self.cached_tokens = (self.cached_tokens or 0) + usage.cached_tokens
        if usage.queue_s is not None:
            self.queue_s = max(self.queue_s or 0.0, usage.queue_s)

    def line(self) -> str:
        known = {key: value for key, value in vars(self).items() if value not in (None, [], False)}
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in known.items()}
        # ASCII: control characters of a client's path cannot reach a terminal.
        return json.dumps({"time": round(time.time(), 3), **rounded})


class AccessLog:
    """Writes lines in a thread of its own, since a reader of stderr may stall."""

    def __init__(self, path: Path | None) -> None:
        """`path`: a file to append to; stderr if None. Raises UsageError."""
        try:
            self._stream: TextIO = sys.stderr if path is None else path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            what = f"serve.access_log = {path} cannot be written"
            raise UsageError(what, error.strerror or str(error), "aifx serve --set serve.access_log=FILE") from None
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
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                if lost:
                    self._stream.write(json.dumps({"time": round(time.time(), 3), "lines_lost": lost}) + "\n")
                self._stream.flush()
        if self._stream is not sys.stderr:
            self._stream.close()
