"""Timing one thing within one process: warm-up until steady, then samples until they say enough or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax
import numpy as np

K = TypeVar("K")

SHORTEST_S = 1e-3
"""A sample lasts so long at the least: the clock and the loop around the call then cost nothing beside it."""

STEADY = 0.05
DRIFT = 0.05
QUARTILES = (0.25, 0.5, 0.75)
WARM_UP_SHARE = 0.3
WINDOW = 3


@dataclass(frozen=True)
class Effort:
    """How much is spent on one result.

    Attributes:
        slice_s: seconds for its samples at the most; as much as WARM_UP_SHARE of it before them for the warm-up. At
            least `least` samples are taken whatever they last.
        precision: half the interval of the median, as a share of it, that is enough.
    """

    slice_s: float = 2.0
    precision: float = 0.005
    least: int = 7
    most: int = 2000


@dataclass(frozen=True)
class Samples:
    """What was timed.

    Attributes:
        seconds: of one call each, in order: the mean over `calls` in a row where one alone is too short to time.
        first_s: the first call of all, with what is done once (compilation, allocation, page faults).
        warm_up: calls before the first sample, the first one not counted.
        notes: what is to be known of them: not steady, drifting.
    """

    seconds: list[float]
    calls: int
    first_s: float
    warm_up: int
    notes: list[str] = field(default_factory=list)


def sample(
    run: Callable[..., Any],
    effort: Effort,
    *,
    inputs: Sequence[tuple[Any, ...]] = ((),),
    make: Callable[[], tuple[Any, ...]] | None = None,
) -> Samples:
    """Time `run(*arguments)` until its results are ready.

    Args:
        inputs: arguments, taken in turn: where what lies in a cache would flatter, as many as the cache cannot hold.
        make: makes new arguments before each call, untimed, for a `run` that consumes them; each sample is one call.
    """
    return _in_turn([_Timed(run, effort, inputs, make)], effort)[0]


def sample_in_turn(
    runs: Mapping[K, Callable[..., Any]], effort: Effort, *, inputs: Sequence[tuple[Any, ...]] = ((),)
) -> dict[K, Samples]:
    """Time several ways of doing one thing, a sample of each after the other: a machine that drifts affects all.

    Args:
        effort: its `slice_s` is for each of them.
        inputs: as `sample` takes them, the same for all.
    """
    timed = [_Timed(run, effort, inputs) for run in runs.values()]
    return dict(zip(runs, _in_turn(timed, replace(effort, slice_s=effort.slice_s * len(runs))), strict=True))


class _Timed:
    """One thing on its way: warm when made."""

    def __init__(
        self,
        run: Callable[..., Any],
        effort: Effort,
        inputs: Sequence[tuple[Any, ...]],
        make: Callable[[], tuple[Any, ...]] | None = None,
    ) -> None:
        self._run, self._inputs, self._make = run, inputs, make
        self._turn = 0
        self.calls = 1
        self.first_s = self.time()
        if not make:
            self.calls = max(1, round(SHORTEST_S / max(self.time(), 1e-9)))
        self.warm_up, self.is_steady = until_steady(self.time, WARM_UP_SHARE * effort.slice_s)
        self.samples: list[float] = []

    def time(self) -> float:
        """Seconds of a call: the mean over `calls` of them."""
        if self._make:
            chosen = [self._make()]
        else:
            chosen = [self._inputs[(self._turn + i) % len(self._inputs)] for i in range(self.calls)]
        self._turn += self.calls
        jax.block_until_ready(chosen)
        results = None
        started = time.perf_counter()
        for arguments in chosen:
            results = self._run(*arguments)
        jax.block_until_ready(results)
        return (time.perf_counter() - started) / self.calls

    def is_enough(self, effort: Effort) -> bool:
        count = len(self.samples)
        return count >= effort.most or (
            count >= effort.least and count % 8 == 0 and _half_width(self.samples) <= effort.precision
        )


def _in_turn(timed: Sequence[_Timed], effort: Effort) -> list[Samples]:
    until = time.perf_counter() + effort.slice_s
    while len(timed[0].samples) < effort.least or time.perf_counter() < until:
        for one in timed:
            one.samples.append(one.time())
        if all(one.is_enough(effort) for one in timed):
            break
    return [
        Samples(one.samples, one.calls, one.first_s, one.warm_up * one.calls, remarks(one.samples, one.is_steady))
        for one in timed
    ]


def until_steady(timed: Callable[[], float], limit_s: float) -> tuple[int, bool]:
    """Calls until the last three take what the three before took, within STEADY; whether they did within the limit."""
    seen: list[float] = []
    until = time.perf_counter() + limit_s
    while True:
        seen.append(timed())
        if len(seen) >= 2 * WINDOW:
            now, before = np.median(seen[-WINDOW:]), np.median(seen[-2 * WINDOW : -WINDOW])
            if abs(now - before) <= STEADY * before:
                return len(seen), True
        if time.perf_counter() > until:
            return len(seen), len(seen) < 2 * WINDOW  # too slow to say


def _half_width(samples: list[float]) -> float:
    """Of the 95 % interval of the median, from order statistics, as a share of the median."""
    ordered = np.sort(samples)
    reach = 0.98 * len(ordered) ** 0.5  # 1.96 standard deviations of the binomial of n and one half
    low = ordered[max(int(np.floor(len(ordered) / 2 - reach)), 0)]
    high = ordered[min(int(np.ceil(len(ordered) / 2 + reach)), len(ordered) - 1)]
    return float((high - low) / 2 / np.median(ordered))


def remarks(samples: list[float], is_steady: bool) -> list[str]:
    notes = [] if is_steady else ["was not steady when its samples began"]
    half = len(samples) // 2
    early, late = np.quantile(samples[:half], QUARTILES), np.quantile(samples[-half:], QUARTILES)
    are_separate = early[2] < late[0] or late[2] < early[0]
    if are_separate and abs(late[1] / early[1] - 1) > DRIFT:
        notes.append(f"drifted by {late[1] / early[1] - 1:+.0%} while it was measured")
    return notes
