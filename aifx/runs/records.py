"""The two logs of a run: `events.jsonl`, what happened, and `metrics.jsonl`, what was measured at each step.

The time of a training process, by activity, is added up for the lines of `events.jsonl`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import psutil

from aifx.core.files import RECORDS_LIMIT, read_file
from aifx.core.json_files import JsonLines, parse_line


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


Activity: TypeAlias = Literal["setup", "compilation", "data_wait", "step", "checkpoint", "evaluation"]
"""Activities of a training process; at each moment one of them."""

FIRST_INTERVAL_S, LAST_INTERVAL_S = 2.0, 60.0
"""Seconds between lines: a killed process loses the time since its last one, at most 0.5 % of a long life."""


class EnergyReader(Protocol):
    """See `aifx.machine.energy.JobEnergy`."""

    def take(self) -> dict[str, Any] | None: ...


@dataclass(eq=False)
class Span:
    """A stretch of time that goes to one activity."""

    activity: Activity


class TimeAccount:
    """Attributes each moment of a process to one activity, by the monotonic clock. May be read from any thread.

    Attributes:
        energy: the meter of the devices, once they are known.
    """

    def __init__(self, started_at: float | None = None) -> None:
        """`started_at`: `time.perf_counter()` when the process began its work for the run; by default now."""
        now = time.perf_counter()
        self._mark = now if started_at is None else min(started_at, now)
        self._born = _boot_clock() - (now - self._mark)
        self._spans = [Span("setup")]
        self._seconds: dict[Activity, float] = {}
        self._steps: tuple[int, int] | None = None
        self._finished_s = 0.0  # of the seconds of "step", those up to the last step that is done
        self._taken = now
        self._lock = threading.Lock()
        self.energy: EnergyReader | None = None

    @contextmanager
    def spending(self, activity: Activity) -> Iterator[Span]:
        """The time of the block goes to `activity`, unless a block within spends it on another."""
        span = Span(activity)
        with self._lock:
            self._settle()
            self._spans.append(span)
        try:
            yield span
        finally:
            with self._lock:
                self._settle()
                self._spans.remove(span)

    def change(self, span: Span, activity: Activity) -> None:
        """Give the rest of `span` to another activity. Nothing happens if the span has ended."""
        with self._lock:
            if span in self._spans:
                self._settle()
                span.activity = activity

    def shift(self, activity: Activity, seconds: float) -> None:
        """Move up to `seconds` of the current activity since the last line to `activity`."""
        with self._lock:
            self._settle()
            current = self._spans[-1].activity
            moved = min(seconds, self._seconds.get(current, 0.0))
            self._seconds[current] = self._seconds.get(current, 0.0) - moved
            self._seconds[activity] = self._seconds.get(activity, 0.0) + moved

    def begin_steps(self, step: int) -> None:
        """The steps from here on follow `step`, that of the state."""
        with self._lock:
            self._steps = (step, step)

    def step_done(self, step: int) -> None:
        """Step `step` is done. One that is not beyond the last is done again, after a rollback."""
        with self._lock:
            self._settle()
            self._finished_s = self._seconds.get("step", 0.0)
            first, last = self._steps or (step - 1, step - 1)
            self._steps = (first if step > last else step - 1, step)

    @property
    def is_due(self) -> bool:
        """Whether the time since the last `take` deserves a line."""
        now = time.perf_counter()
        interval_s = (_boot_clock() - self._born) / 200
        return now - self._taken >= min(max(interval_s, FIRST_INTERVAL_S), LAST_INTERVAL_S)

    def take(self) -> dict[str, Any]:
        """The account of the time since the last call; `aifx.runs.formats.Account` describes it."""
        with self._lock:
            self._taken = self._settle()
            seconds, self._seconds = self._seconds, {}
            steps, finished_s, self._finished_s = self._steps, self._finished_s, 0.0
            if steps is not None:
                self._steps = (steps[1], steps[1])
            elapsed_s = _boot_clock() - self._born
        account: dict[str, Any] = {"elapsed_s": round(elapsed_s, 6)}
        account["seconds"] = {name: round(value, 6) for name, value in seconds.items() if value > 0}
        if steps is not None:
            account["steps"] = list(steps)
            account["unfinished_s"] = round(max(seconds.get("step", 0.0) - finished_s, 0.0), 6)
        if self.energy is not None and (energy := self.energy.take()) is not None:
            account["energy"] = energy
        return account

    def _settle(self) -> float:
        now = time.perf_counter()
        current = self._spans[-1].activity
        self._seconds[current] = self._seconds.get(current, 0.0) + now - self._mark
        self._mark = now
        return now


def process_started_at() -> float:
    """`time.perf_counter()` when the kernel started this process; imports are part of its time."""
    now = time.perf_counter()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = _boot_clock() - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):  # psutil knows it to the second
        age_s = time.time() - psutil.Process().create_time()
    return now - max(age_s, 0.0)


def _boot_clock() -> float:
    """Seconds that no setting of the clock changes, those of a suspended machine included if the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
