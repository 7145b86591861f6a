"""Durations of a line file, and the times at which a line ticks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
MAX_S = 366 * 86400
"""The longest duration. A longer one is most likely a mistake."""

_DURATION = re.compile(r"(\d{1,9})(s|m|h|d|w)")
_ANCHOR = datetime(1970, 1, 5)  # a Monday, so that "7d" begins on Mondays


def parse_duration(text: str) -> float:
    """Seconds of "90s", "15m", "2h", "7d" or "1w". Raises ValueError, also for 0 and for more than a year."""
    match = _DURATION.fullmatch(text)
    seconds = int(match[1]) * UNITS[match[2]] if match else 0
    if not 0 < seconds <= MAX_S:
        raise ValueError(f"{text!r} is no duration: a whole number and s, m, h, d or w, a year at most")
    return float(seconds)


def period_start(now: float, every_s: float, timezone: str) -> float:
    """The Unix time at which the period began that `now` lies in.

    Periods are counted on the wall clock from a Monday at midnight, so that "1d" begins at midnight in summer time too.
    All that was missed lies in one period and is one tick.
    """
    zone = ZoneInfo(timezone)
    wall = datetime.fromtimestamp(now, zone).replace(tzinfo=None)
    number = (wall - _ANCHOR) // timedelta(seconds=every_s)
    begin = (_ANCHOR + number * timedelta(seconds=every_s)).replace(tzinfo=zone).timestamp()
    # An hour that the clock repeats has one begin, the first. Within one that it skips, the begin may lie after now.
    return min(begin, now)


def next_start(now: float, every_s: float, timezone: str) -> float:
    """The Unix time at which the next period begins; always after `now`."""
    zone = ZoneInfo(timezone)
    wall = datetime.fromtimestamp(now, zone).replace(tzinfo=None)
    step = timedelta(seconds=every_s)
    begin = _ANCHOR + ((wall - _ANCHOR) // step + 1) * step
    while (found := begin.replace(tzinfo=zone).timestamp()) <= now:
        begin += step
    return found


def is_due(begins: Iterable[float], now: float, every_s: float, timezone: str) -> bool:
    """Whether a period began since the last of `begins`.

    Those that lie more than a period in the future are not counted: the clock was wrong then, or is wrong now. The
    others are, so that a clock that jumps back and forth has each period once.
    """
    last = max((begin for begin in begins if begin <= now + every_s), default=None)
    return last is None or period_start(now, every_s, timezone) > last


def time_text(now: float) -> str:
    """ "20261202T131500.125Z"."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3] + "Z"
