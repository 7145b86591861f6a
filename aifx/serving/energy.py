"""The power of the devices that answer requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from aifx.machine.energy import SHORTEST_S, Counter, Power, Unreadable, open_counters, stated_power

logger = logging.getLogger(__name__)


class PowerMeter:
    """The power of the devices: by their counters, otherwise as declared, otherwise by the catalogue.

    Counters also hold what other processes use. Idle time, from `pause` to `resume`, does not count.
    """

    def __init__(self, devices: Sequence[Any], declared_w: float | None = None) -> None:
        self._counters: Sequence[Counter] = ()
        self._power: Power | None = None
        try:
            self._counters = open_counters(devices)
        except Unreadable:
            self._power = stated_power(devices, declared_w)
        self._read_at, self._joules = time.monotonic(), self._read()
        self._worked_s = self._worked_j = 0.0  # since power was measured, up to `_read_at`
        self._is_paused = False

    @property
    def power(self) -> Power | None:
        """The power over the last half second of work or more; None if nothing is known."""
        if self._counters and self._worked_s + time.monotonic() - self._read_at >= SHORTEST_S:
            self._add()
            if self._counters:
                self._power = Power(self._worked_j / self._worked_s, "measured")
            self._worked_s = self._worked_j = 0.0
        return self._power

    def pause(self) -> None:
        """Stop counting: the devices have no work until `resume`."""
        if not self._is_paused:
            self._add()
        self._is_paused = True

    def resume(self) -> None:
        if self._is_paused:
            self._read_at, self._joules = time.monotonic(), self._read()
        self._is_paused = False

    def _add(self) -> None:
        """Count what was used since the last reading as work."""
        now, after = time.monotonic(), self._read()
        pairs = zip(self._counters, self._joules, after, strict=False)
        self._worked_j += sum(counter.used(start, end) for counter, start, end in pairs)
        self._worked_s += now - self._read_at
        self._read_at, self._joules = now, after

    def _read(self) -> list[float]:
        """Read the counters. If one cannot be read, none is read again, and power is not known."""
        try:
            return [counter.read() for counter in self._counters]
        except Unreadable as error:
            logger.warning(f"energy is no longer known: {error}")
            self._counters, self._power = (), None
            return []
