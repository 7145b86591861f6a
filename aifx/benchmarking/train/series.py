"""Programs that follow each other as a training's steps do: the next one is dispatched before this one is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aifx.benchmarking.timing import Timed

FILL = 2
"""Calls of a block before its first sample: the caches are its own again, and one call is ahead."""


class Series(Timed):
    """One program that is called over and over, in blocks, so that several can be measured in turn. `advance` makes a
    call, and returns what can be waited for.

    A sample is the time from one call's end to the next one's: what the host does meanwhile is not in it, unless the
    device waits for it.

    Attributes:
        blocks: the samples of each.
        dispatch_s: what the host was held by a call, for each sample.
        alone_s: a call that is waited for, once warm.
    """

    def __init__(self, advance: Callable[[], Any]) -> None:
        super().__init__(advance)
        self.dispatch_s: list[float] = []
        self.blocks: list[list[float]] = []

    def warm(self, limit_s: float) -> None:
        super().warm(limit_s)
        self.alone_s = self.time()

    def block(self, limit_s: float, least: int, most: int = 2000) -> int:
        """Sample for so long, so many times at the least and at the most. Returns the calls that it took."""
        pending = self._run()
        for _ in range(FILL - 1):
            following = self._run()
            jax.block_until_ready(pending)
            pending = following
        taken: list[float] = []
        mark = time.perf_counter()
        until = mark + limit_s
        while len(taken) < least or (mark < until and len(taken) < most):
            held_s = 0.0
            for _ in range(self.calls):
                started = time.perf_counter()
                following = self._run()
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
        """The median of each block."""
        return [float(np.median(block)) for block in self.blocks]

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))
