"""Timing one thing within one process: warm-up until steady, then samples until they say enough or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

SHORTEST_S = 1e-3
"""A sample lasts so long at the least: the clock and the loop around the call then cost nothing beside it."""

STEADY = 0.05
DRIFT = 0.05
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
    turn = 0

    def seconds(calls: int) -> float:
        nonlocal turn
        chosen = [make()] if make else [inputs[(turn + i) % len(inputs)] for i in range(min(calls, len(inputs)))]
        turn += calls
        jax.block_until_ready(chosen)
        results = None
        started = time.perf_counter()
        for i in range(calls):
            results = run(*chosen[i % len(chosen)])
        jax.block_until_ready(results)
        return (time.perf_counter() - started) / calls

    first_s = seconds(1)
    calls = 1 if make else max(1, round(SHORTEST_S / max(seconds(1), 1e-9)))
    warm, is_steady = _warm_up(lambda: seconds(calls), WARM_UP_SHARE * effort.slice_s)
    samples: list[float] = []
    until = time.perf_counter() + effort.slice_s
    while len(samples) < effort.most and (len(samples) < effort.least or time.perf_counter() < until):
        samples.append(seconds(calls))
        if len(samples) >= effort.least and len(samples) % 8 == 0 and _half_width(samples) <= effort.precision:
            break
    return Samples(samples, calls, first_s, warm * calls, _notes(samples, is_steady))


def _warm_up(timed: Callable[[], float], limit_s: float) -> tuple[int, bool]:
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


def _notes(samples: list[float], is_steady: bool) -> list[str]:
    notes = [] if is_steady else ["was not steady when its samples began"]
    half = len(samples) // 2
    early, late = np.median(samples[:half]), np.median(samples[-half:])
    if abs(late / early - 1) > DRIFT:
        notes.append(f"drifted by {late / early - 1:+.0%} while it was measured")
    return notes
