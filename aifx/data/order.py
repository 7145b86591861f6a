"""The order of training by arithmetic, not by a list in memory: each epoch's shuffle, and mixes of data sets."""

from __future__ import annotations

import queue
import threading
from bisect import bisect_right
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aifx.core.digests import hash32
from aifx.core.errors import DataError
from aifx.data.base import Batch, BatchSource

READ_ENDS_S = 1.0
"""Seconds that closing waits for the read under way, so that Python's exit does not interrupt a library of C++."""


# A place counts the rows of a training from its first one, over all epochs: the batch of step s (from 0) holds places
# s * batch_size to (s + 1) * batch_size - 1, of which each process reads its slice. Place p of a data set of n rows is
# row permutation[p % n] of epoch p // n. The permutation is a keyed bijection of 0..n-1 (Grain's `index_shuffle`, by
# rounds of the block cipher Simon), whose key is a hash of the seed and the epoch. So any place is found at once: a run
# that resumes reads on from its step, and processes need no exchange. Seed and batch size decide the rows of a step.


def shuffled(place: int, length: int, seed: int) -> tuple[int, int]:
    """Epoch and example of the place-th example of a training that visits each of `length` examples once per epoch."""
    # Grain takes a second to import, a tenth where jax and orbax are there already.
    from grain.experimental import index_shuffle

    assert 0 < length < 2**32
    epoch, within = divmod(place, length)
    epoch_seed = hash32("shuffle", seed, epoch)
    return epoch, index_shuffle(within, max_index=length - 1, seed=epoch_seed, rounds=4)


@dataclass(frozen=True, eq=False)
class BalancedOrder:
    """An order of training in which all classes are equally frequent, and so are the examples of each."""

    members: tuple[np.ndarray, ...]  # the examples of each class, by number

    def __call__(self, places: range, seed: int) -> np.ndarray:
        """The example at each place, int64 `[places]`."""
        picked = []
        for place in places:
            turn, which = shuffled(place, len(self.members), hash32("classes", seed))
            members = self.members[which]
            picked.append(members[shuffled(turn, len(members), hash32("class", seed, which))[1]])
        return np.array(picked, np.int64)


def batch_number(step: int, left_out: Sequence[int] = ()) -> int:
    """The batch, counted from 0, that the update `step`, counted from 1, is computed from.

    Args:
        left_out: numbers of batches that no step takes, in rising order.
    """
    number = step - 1
    for other in left_out:
        number += other <= number
    return number


def prefetch(
    source: BatchSource, steps: range, rows: slice, depth: int = 2, left_out: Sequence[int] = ()
) -> Generator[Batch, None, None]:
    """For each number of updates done in `steps`, the batch of the next one, without `left_out` (see `batch_number`).

    A thread reads up to `depth` (at least 2) of them ahead: some wait, one is being read. Closing the generator ends
    the thread, or leaves it if it is stuck in a read. Python's exit does not wait for it then, as it would for a thread
    of grain's or of an executor.
    """
    ready = queue.Queue[Batch | BaseException | None](depth - 1)
    closed = threading.Event()

    def read(step: int) -> Batch:
        number = batch_number(step + 1, left_out)
        try:
            return source.read(number, rows)
        except (StopIteration, SystemExit) as error:  # Python would take it for an end of something else
            why = f"its source raised {type(error).__name__}: {error}"
            raise DataError(f"training batch {number} could not be read", why, "correct the source") from error

    def read_all() -> None:
        try:
            for step in steps:
                ready.put(read(step))
                if closed.is_set():
                    return
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=read_all, name="aifx-prefetch", daemon=True)
    thread.start()
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        closed.set()
        with suppress(queue.Empty):
            while True:  # the thread may wait for room
                ready.get_nowait()
        thread.join(READ_ENDS_S)


# Several data sets are mixed by weights in cycles of CYCLE rows. Each part gives a cycle its share of rows, rounded so
# that they add up (`cycle_stops`), evenly spread: its row j of n belongs at (j + 1/2) / n of the cycle, and the rows of
# all parts are sorted by that. All cycles are alike, so the part of a place and the rows of it before are arithmetic.
# When a part reaches its limit of epochs, a new phase begins, with a cycle of the parts that are left.

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
        """The part, and the number of its row. Raises IndexError for a place at which all limits are reached."""
        if self.num_places is not None and place >= self.num_places:
            raise IndexError(place)
        return self._phases[bisect_right(self._phases, place, key=lambda phase: phase.start) - 1].read(place)

    @cached_property
    def num_places(self) -> int | None:
        """Rows until all limits are reached; None if a part has none."""
        known = [limit for limit in self.limits if limit is not None]
        return sum(known) if len(known) == len(self.limits) else None

    @cached_property
    def _phases(self) -> list[_Phase]:
        found: list[_Phase] = []
        start, before, limits = 0, (0,) * len(self.shares), self.limits
        while active := [part for part, limit in enumerate(limits) if limit is None or before[part] < limit]:
            phase = self._phase(start, before, active)
            found.append(phase)
            left = {part: limit - before[part] for part in active if (limit := limits[part]) is not None}
            if not left:
                break
            start = min(phase.place_of(part, rows - 1) + 1 for part, rows in left.items())
            before = phase.read_until(start)
        return found

    def _phase(self, start: int, before: tuple[int, ...], active: Sequence[int]) -> _Phase:
        """Each part evenly spread over a cycle: its row j of n is at (j + 1/2) / n of it."""
        quotas = np.diff(cycle_stops([self.shares[part] for part in active], CYCLE), prepend=0)
        turns = np.concatenate([np.arange(quota) for quota in quotas])
        order = np.argsort((turns + 0.5) / np.repeat(quotas, quotas), kind="stable")
        by_part = dict(zip(active, quotas.tolist(), strict=True))
        return _Phase(start, before, np.repeat(active, quotas)[order], turns[order], by_part)
