"""The two logs of a run: `events.jsonl`, what happened, and `metrics.jsonl`, what was measured at each step."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aifx.core.files import RECORDS_LIMIT, read_file
from aifx.core.json_files import JsonLines, parse_line
from aifx.runs.time_account import TimeAccount


class Ledger(JsonLines):
    """`events.jsonl`: what happened to a run and when, over all of its processes. Opened to append.

    With an account, each line also says what the time since the line before was spent on. A process that is killed has
    then told all but the time since its last line.
    """

    def __init__(self, path: Path, account: TimeAccount | None = None) -> None:
        super().__init__(path, is_patient=True)
        self._account = account
        self._order = threading.Lock()  # the account is read in the order of the lines

    def write(self, event: str, **fields: Any) -> None:
        """One line, in the file when this returns. A disk that is full or fails gets it once it recovers."""
        with self._order:
            account = {} if self._account is None else {"account": self._account.take()}
            self.append({"time": time.time(), "event": event, **fields, **account})


class MetricsWriter(JsonLines):
    """`metrics.jsonl`, continued after step `resume_at`.

    Later records, which will be made again, are cut, and so is a torn line. Write the records up to a step before that
    step's checkpoint is saved: then no resumption can miss one. Each step is in the file once, and steps rise.
    """

    def __init__(self, path: Path, resume_at: int) -> None:
        super().__init__(path, is_patient=True)
        self.cut(lambda data: _end_of_step(data, resume_at))
        kept = _backwards(read_file(path, limit=RECORDS_LIMIT))
        self._last = next((record["step"] for _, record in kept), 0)

    def write(self, record: Mapping[str, Any]) -> None:
        """One line, in the file when this returns. A step that is there is replaced, with what came after it."""
        step = int(record["step"])
        if step <= self._last:
            self.cut(lambda data: _end_of_step(data, step - 1))
        self.append(record)
        self._last = step


def last_record(path: Path, step: int) -> list[Any] | None:
    """The step and the time of the last record up to `step` in `metrics.jsonl`, if there is one."""
    if not path.exists():
        return None
    found = _backwards(read_file(path, limit=RECORDS_LIMIT))
    return next(([record["step"], record.get("time")] for _, record in found if record["step"] <= step), None)


def _end_of_step(data: bytes, step: int) -> int:
    """Where in `data` (whole lines, steps rising) the records up to `step` end. Reads from the end backwards."""
    return next((end for end, record in _backwards(data) if record["step"] <= step), 0)


def _backwards(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records with a step in whole lines, the last first, each with where its line ends."""
    end = len(data)
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        record = parse_line(data[start:end])
        if record is not None and isinstance(record.get("step"), int):
            yield end, record
        end = start
