"""Timing one thing within one process: warm-up until steady, then samples until they say enough or time is up."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """The time and precision to spend on one result.

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
    """The timed samples of one thing.

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


def sample(run: Callable[..., Any], effort: Effort, *, inputs: Sequence[tuple[Any, ...]] = ((),)) -> Samples:
    """Time `run(*arguments)` until its results are ready. The arguments are taken from the inputs in turn: where what
    lies in a cache would flatter, there are as many as the cache cannot hold."""
    return sample_in_turn({"": run}, effort, inputs=inputs)[""]


def sample_in_turn(
    runs: Mapping[K, Callable[..., Any]], effort: Effort, *, inputs: Sequence[tuple[Any, ...]] = ((),)
) -> dict[K, Samples]:
    """Time several ways of doing one thing, a sample of each after the other: a machine that drifts affects all. The
    effort is for each of them; the inputs, as `sample` takes them, are the same for all."""
    timed = {name: Timed(run, inputs) for name, run in runs.items()}
    seconds: dict[K, list[float]] = {name: [] for name in runs}
    for one in timed.values():
        one.warm(WARM_UP_SHARE * effort.slice_s)
    until = time.perf_counter() + effort.slice_s * len(runs)
    count = 0
    while count < effort.least or (count < effort.most and time.perf_counter() < until):
        for name, one in timed.items():
            seconds[name].append(one.time())
        count += 1
        is_checked = count >= effort.least and count % 8 == 0
        if is_checked and all(_half_width(samples) <= effort.precision for samples in seconds.values()):
            break
    return {name: one.samples(seconds[name]) for name, one in timed.items()}


class Timed:
    """One thing that is called over and over: `calls` times in a row for a sample, where one is too short to time."""

    def __init__(self, run: Callable[..., Any], inputs: Sequence[tuple[Any, ...]] = ((),)) -> None:
        self._run, self._inputs = run, itertools.cycle(inputs)
        self.calls = 1

    def warm(self, limit_s: float) -> None:
        """Call until it is steady, for so long at the most."""
        self.first_s = self.time()
        self.calls = max(1, round(SHORTEST_S / max(self.time(), 1e-9)))
        self.warm_up, self.is_steady = until_steady(self.time, limit_s)

    def time(self) -> float:
        """Seconds of a call: the mean over `calls` of them, waited for."""
        chosen = list(itertools.islice(self._inputs, self.calls))
        jax.block_until_ready(chosen)
        results = None
        started = time.perf_counter()
        for arguments in chosen:
            results = self._run(*arguments)
        jax.block_until_ready(results)
        return (time.perf_counter() - started) / self.calls

    def samples(self, seconds: list[float]) -> Samples:
        notes = remarks(seconds, self.is_steady)
        return Samples(seconds, self.calls, self.first_s, self.warm_up * self.calls, notes)


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
    """Half the 95 % interval of the median, from order statistics, as a share of the median."""
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
