"""The energy and price of a request: its share, by tokens or rows, of each turn of the engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from aifx.machine.energy import SHORTEST_S, Counter, Power, Unreadable, open_counters, stated_power
from aifx.serving.requests import EnergyBasis

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
        """Of the last half second of work or more; None if nothing is known."""
        if self._counters and self._worked_s + time.monotonic() - self._read_at >= SHORTEST_S:
            self._add()
            if self._counters:
                self._power = Power(self._worked_j / self._worked_s, "measured")
            self._worked_s = self._worked_j = 0.0
        return self._power

    def pause(self) -> None:
        """The devices have no work until `resume`."""
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


class Consumer(Protocol):
    """A request, and what it used so far; None if that is not known."""

    joules: float | None
    energy_basis: EnergyBasis | None
    cost: float | None


class Shares:
    """Gives requests their share of the energy and price of the time that the engine works."""

    def __init__(self, meter: PowerMeter | None = None, price_per_hour: float | None = None) -> None:
        self._meter, self._price_per_hour = meter, price_per_hour
        self._parts: list[tuple[Consumer, int]] = []
        self._since = time.monotonic()

    def pause(self) -> None:
        """Idle time begins, which lasts until `begin`."""
        if self._meter is not None:
            self._meter.pause()

    def begin(self) -> None:
        """Restart the clock after idle time. What cancelled requests used just before it is nobody's."""
        if self._meter is not None:
            self._meter.resume()
        self._since = time.monotonic()
        self._parts.clear()

    def add(self, request: Consumer, count: int) -> None:
        """Tokens that were read or written, or rows that were predicted, since the last `settle`."""
        self._parts.append((request, count))

    def settle(self) -> None:
        """Divide what was used since the last call among the parts since then."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        parts, self._parts = self._parts, []
        total = sum(count for _, count in parts)
        power = self._meter.power if self._meter is not None else None
        for request, count in parts:
            share = seconds * count / total
            if power is not None:
                request.joules = (request.joules or 0.0) + power.watts * share
                request.energy_basis = power.basis
            if self._price_per_hour is not None:
                request.cost = (request.cost or 0.0) + self._price_per_hour / 3600 * share
