"""The energy and price of a request: its share, by tokens, of each turn of the engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from aifx.machine.energy import SHORTEST_S, Counter, Power, Unreadable, open_counters, stated_power
from aifx.serving.rows import Row

logger = logging.getLogger(__name__)


class PowerMeter:
    """The power of the devices: by their counters, otherwise as declared, otherwise by the catalogue.

    Counters also hold what other processes use.
    """

    def __init__(self, devices: Sequence[Any], declared_w: float | None = None) -> None:
        self._counters: Sequence[Counter] = ()
        self._power: Power | None = None
        try:
            self._counters = open_counters(devices)
        except Unreadable:
            self._power = stated_power(devices, declared_w)
        self._read_at, self._joules = time.monotonic(), self._read()

    @property
    def power(self) -> Power | None:
        """Of the last half second or more; None if nothing is known."""
        now = time.monotonic()
        if self._counters and now - self._read_at >= SHORTEST_S:
            after = self._read()
            pairs = zip(self._counters, self._joules, after, strict=False)
            joules = sum(counter.used(start, end) for counter, start, end in pairs)
            self._power = Power(joules / (now - self._read_at), "measured") if after else None
            self._read_at, self._joules = now, after
        return self._power

    def _read(self) -> list[float]:
        """Read the counters. If one cannot be read, none is read again."""
        try:
            return [counter.read() for counter in self._counters]
        except Unreadable as error:
            logger.warning(f"energy is no longer known: {error}")
            self._counters = ()
            return []


class Shares:
    """Gives rows their share of the energy and price of the time that the engine works."""

    def __init__(self, meter: PowerMeter | None = None, price_per_hour: float | None = None) -> None:
        self._meter, self._price_per_hour = meter, price_per_hour
        self._tokens: list[tuple[Row, int]] = []
        self._since = time.monotonic()

    def begin(self) -> None:
        """Restart the clock after idle time."""
        self._since = time.monotonic()

    def add(self, row: Row, tokens: int) -> None:
        """Tokens that were read or written since the last `settle`."""
        self._tokens.append((row, tokens))

    def settle(self) -> None:
        """Divide what was used since the last call among the tokens since then."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        tokens, self._tokens = self._tokens, []
        total = sum(count for _, count in tokens)
        power = self._meter.power if self._meter is not None else None
        for row, count in tokens:
            share = seconds * count / total
            if power is not None:
                row.joules = (row.joules or 0.0) + power.watts * share
                row.energy_basis = power.basis
            if self._price_per_hour is not None:
                row.cost = (row.cost or 0.0) + self._price_per_hour / 3600 * share
