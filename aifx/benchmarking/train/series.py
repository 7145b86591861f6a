"""Programs that follow each other as a training's steps do: the next one is dispatched before this one is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aifx.benchmarking.timing import SHORTEST_S, Samples, remarks, until_steady

FILL = 2
"""Calls of a block before its first sample: the caches are its own again, and one call is ahead."""


class Series:
    """One program that is called over and over, in blocks, so that several can be measured in turn.

    A sample is the time from one call's end to the next one's: what the host does meanwhile is not in it, unless the
    device waits for it.

    Attributes:
        blocks: the samples of each: the mean over `calls` in a row where one is too short to time.
        dispatch_s: what the host was held by each call, its mean as above.
        alone_s: a call that is waited for, once warm.
    """

    def __init__(self, advance: Callable[[], Any]) -> None:
        """Args:
        advance: makes a call, and returns what can be waited for.
        """
        self._advance = advance
        self.calls = 1
        self.dispatch_s: list[float] = []
        self.blocks: list[list[float]] = []

    def warm(self, limit_s: float) -> None:
        """Call until it is steady, for so long at the most."""
        self.first_s = self._alone()
        self.calls = max(1, round(SHORTEST_S / max(self._alone(), 1e-9)))
        self.warm_up, self.is_steady = until_steady(self._alone, limit_s)
        self.alone_s = self._alone()

    def block(self, limit_s: float, least: int, most: int = 2000) -> int:
        """Sample for so long, so many times at the least and at the most. Returns the calls that it took."""
        pending = self._advance()
        for _ in range(FILL - 1):
            following = self._advance()
            jax.block_until_ready(pending)
            pending = following
        taken: list[float] = []
        mark = time.perf_counter()
        until = mark + limit_s
        while len(taken) < least or (mark < until and len(taken) < most):
            held_s = 0.0
            for _ in range(self.calls):
                started = time.perf_counter()
                following = self._advance()
                held_s += time.perf_counter() - started
                jax.block_until_ready(pending)
                pending = following
            now = time.perf_counter()
            taken.append((now - mark) / self.calls)
            self.dispatch_s.append(held_s / self.calls)
            mark = now
        jax.block_until_ready(pending)
        self.blocks.append(taken)
        return FILL + len(taken) * self.calls

    @property
    def seconds(self) -> list[float]:
        """All samples."""
        return [seconds for block in self.blocks for seconds in block]

    @property
    def medians(self) -> list[float]:
        """Of each block."""
        return [float(np.median(block)) for block in self.blocks]

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    def samples(self) -> Samples:
        return Samples(self.seconds, self.calls, self.first_s, self.warm_up, remarks(self.seconds, self.is_steady))

    def _alone(self) -> float:
        started = time.perf_counter()
        for _ in range(self.calls):
            jax.block_until_ready(self._advance())
        return (time.perf_counter() - started) / self.calls
