"""The two diaries of a run: `events.jsonl`, what happened, and `metrics.jsonl`, what was measured at each step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aifx.runs.files import JsonLines, parse_line


class Ledger(JsonLines):
    """`events.jsonl`: what happened to a run and when, over all of its processes. Opened to append."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    def write(self, event: str, **fields: Any) -> None:
        """One line, in the file when this returns."""
        self.append({"time": time.time(), "event": event, **fields})


class MetricsWriter(JsonLines):
    """`metrics.jsonl`, continued after step `resume_at`.

    Later records, which will be made again, are cut, and so is a torn line. Write the records up to a step before that
    step's checkpoint is saved: then no resumption can miss one, and each step is in the file once.
    """

    def __init__(self, path: Path, resume_at: int) -> None:
        super().__init__(path, lambda data: _end_of_step(data, resume_at))

    def write(self, record: Mapping[str, Any]) -> None:
        """One line, in the file when this returns. `record["step"]` rises from record to record."""
        self.append(record)


def _end_of_step(data: bytes, step: int) -> int:
    """Where in `data` (whole lines, steps rising) the records up to `step` end. Reads from the end backwards."""
    end = len(data)
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        record = parse_line(data[start:end])
        if record is not None and isinstance(record.get("step"), int) and record["step"] <= step:
            return end
        end = start
    return 0
