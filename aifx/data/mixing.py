"""Several data sets in turn: which one each row of training is from, by arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CYCLE = 1000
"""Rows in succession that hold each part of a mix in its share, to the nearest row."""


def cycle_stops(shares: Sequence[float], length: int) -> list[int]:
    """Where the rows of each part end in a cycle of so many rows that holds them one part after another."""
    sums = np.cumsum(shares) / sum(shares)
    return [round(length * share) for share in sums.tolist()]


def part_at(place: int, stops: Sequence[int]) -> tuple[int, int]:
    """The part that has a place of several parts in succession, which end at `stops`, and the place in it."""
    part = bisect_right(stops, place)
    return part, place - (stops[part - 1] if part else 0)


@dataclass(frozen=True, eq=False)
class _Phase:
    """A time during which the same parts are read.

    Attributes:
        start: its first place.
        before: rows of each of all parts that were read before it.
        parts: the part at each place of a cycle.
        turns: for each place of a cycle, how many places of the same part the cycle has before it.
        quotas: places in a cycle, by part.
    """

    start: int
    before: tuple[int, ...]
    parts: np.ndarray
    turns: np.ndarray
    quotas: dict[int, int]

    def read(self, place: int) -> tuple[int, int]:
        cycle, within = divmod(place - self.start, CYCLE)
        part = int(self.parts[within])
        return part, self.before[part] + cycle * self.quotas[part] + int(self.turns[within])

    def place_of(self, part: int, turn: int) -> int:
        """The place of the phase's row `turn` of a part."""
        cycle, within = divmod(turn, self.quotas[part])
        return self.start + cycle * CYCLE + int(np.flatnonzero(self.parts == part)[within])

    def read_until(self, place: int) -> tuple[int, ...]:
        """Rows of each part that were read before a place."""
        cycle, within = divmod(place - self.start, CYCLE)
        rest = np.bincount(self.parts[:within], minlength=len(self.before)).tolist()
        return tuple(n + cycle * self.quotas.get(part, 0) + rest[part] for part, n in enumerate(self.before))


@dataclass(frozen=True)
class Turns:
    """The part at each place of training, and how many of its rows come before: any beginning holds the shares.

    Attributes:
        shares: of each part; they need not sum to 1.
        limits: rows of a part that may be read in all; without a limit if None. When a part has reached its limit,
            the others are read in proportion to their shares.
    """

    shares: tuple[float, ...]
    limits: tuple[int | None, ...]

    def __call__(self, place: int) -> tuple[int, int]:
        """Raises IndexError for a place at which all limits are reached."""
        if self.num_places is not None and place >= self.num_places:
            raise IndexError(place)
        phases = self._phases
        return phases[bisect_right([phase.start for phase in phases], place) - 1].read(place)

    @cached_property
    def num_places(self) -> int | None:
        """Rows until all limits are reached; None if a part has none."""
        if None in self.limits:
            return None
        return sum(limit for limit in self.limits if limit is not None)

    @cached_property
    def _phases(self) -> list[_Phase]:
        return list(self._follow())

    def _follow(self) -> Iterator[_Phase]:
        start, before = 0, (0,) * len(self.shares)
        while active := [part for part, limit in enumerate(self.limits) if limit is None or before[part] < limit]:
            phase = self._phase(start, before, active)
            yield phase
            ends = [
                phase.place_of(part, limit - before[part] - 1) + 1
                for part in active
                if (limit := self.limits[part]) is not None
            ]
            if not ends:
                return
            start = min(ends)
            before = phase.read_until(start)

    def _phase(self, start: int, before: tuple[int, ...], active: Sequence[int]) -> _Phase:
        """Each part evenly spread over a cycle: its row j of n is at (j + 1/2) / n of it."""
        stops = cycle_stops([self.shares[part] for part in active], CYCLE)
        quotas = {part: stop - first for part, stop, first in zip(active, stops, [0, *stops], strict=False)}
        parts = np.repeat(active, list(quotas.values()))
        turns = np.concatenate([np.arange(quota) for quota in quotas.values()])
        ideal = np.concatenate([(np.arange(quota) + 0.5) / max(quota, 1) for quota in quotas.values()])
        order = np.argsort(ideal, kind="stable")
        return _Phase(start, before, parts[order], turns[order], quotas)
