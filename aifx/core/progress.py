"""Progress of long activities. The library reports it, and the running command shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

EVERY_S = 0.1
RATE_AFTER_S = 1.0


@dataclass(frozen=True)
class Progress:
    """An activity, and how much of it is done.

    Attributes:
        activity: "tokenizing data/book.txt".
        total: None if it is not known before the end.
        unit: "bytes", "batches".
        elapsed_s: since the activity began.
    """

    activity: str
    done: int
    total: int | None
    unit: str
    elapsed_s: float

    @property
    def share(self) -> float | None:
        """The share that is done, from 0 to 1; None if the total is not known."""
        return min(self.done / self.total, 1.0) if self.total else None

    @property
    def amount(self) -> str:
        """How much is done, such as "50% of 4.0 MB", with the rate and the time left once they are known."""
        if self.share is not None:
            return f"{self.share:.0%} of {_amount(self.total or 0, self.unit)}{self._rate()}"
        if self.done:
            return f"{_amount(self.done, self.unit)}{self._rate()}"
        return f"{self.elapsed_s:.0f} s"

    def __str__(self) -> str:
        return f"{self.activity}: {self.amount}"

    def _rate(self) -> str:
        """The rate, and the time that the rest takes at this rate; nothing in the first second."""
        if self.elapsed_s < RATE_AFTER_S or not self.done:
            return ""
        each = self.done / self.elapsed_s
        rate = f", {_amount(round(each), self.unit) if self.unit == 'bytes' else f'{_digits(each)} {self.unit}'}/s"
        if self.total is None or self.done >= self.total:
            return rate
        return f"{rate}, {_time((self.total - self.done) / each)} left"


Listener: TypeAlias = Callable[[Progress | None], None]
"""Called with the state of an activity several times a second, and with None when it has ended."""

_listeners: list[Listener] = []


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Report progress to `listener` instead of to the previous listener."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def overhear(listener: Listener) -> Iterator[None]:
    """Report progress to `listener` as well as to the previous one."""

    def both(progress: Progress | None) -> None:
        listener(progress)
        before(progress)

    before: Listener = _listeners[-1] if _listeners else lambda _: None
    with listen(both):
        yield


def publish(progress: Progress | None) -> None:
    """Give the listener the state of an activity, perhaps of another process, or None when it has ended."""
    if _listeners:
        _listeners[-1](progress)


class Reporter:
    """Reports one activity to the listener."""

    def __init__(self, activity: str, total: int | None, unit: str) -> None:
        self._activity, self._total, self._unit = activity, total, unit
        self._done = 0
        self._began = time.monotonic()
        self._reported_s = 0.0

    def advance(self, amount: int) -> None:
        self._done += amount
        if time.monotonic() - self._reported_s >= EVERY_S:
            self._report()

    def enter(self, activity: str) -> None:
        """Continue with a part whose progress cannot be counted."""
        self._activity, self._total, self._done = activity, None, 0
        self._began = time.monotonic()
        self._report()

    def _report(self) -> None:
        self._reported_s = time.monotonic()
        publish(Progress(self._activity, self._done, self._total, self._unit, self._reported_s - self._began))


@contextmanager
def report_progress(activity: str, total: int | None, unit: str) -> Iterator[Reporter]:
    """Report the progress of `activity`: call `advance` of what this yields."""
    try:
        yield Reporter(activity, total, unit)
    finally:
        publish(None)


def _time(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def _digits(rate: float) -> str:
    """Three digits that count: 1.23, or 58,000."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 100 else f"{rate:.3g}"


def _amount(count: int, unit: str) -> str:
    if unit != "bytes":
        return f"{count:,} {unit}"
    from aifx.core.json_files import readable_bytes

    return readable_bytes(count)
