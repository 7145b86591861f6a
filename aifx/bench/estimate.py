"""Medians with intervals, and whether one thing is slower than another.

Samples of one launch share its compilation, its memory layout and its luck, so that they say nothing of how launches
differ. The estimate is therefore the median of the launches' medians, its interval comes from a bootstrap that draws
launches and then samples within them, and the test of a difference (Mann-Whitney) takes each launch as one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
LEAST_LAUNCHES = 5
"""Of each side, for a test: with five and five the smallest p of Mann-Whitney, one-sided, is 1/252."""

SIGNIFICANCE = 0.01

Launches = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Estimate:
    """A median and its interval, in the unit of what it was formed of."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """How the second of two things stands to the first.

    Attributes:
        ratio: of the medians, second over first: above 1 is slower.
        p: of the one-sided Mann-Whitney test over the launches in the direction seen; None with too few launches.
    """

    ratio: float
    low: float
    high: float
    p: float | None

    @property
    def is_significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANCE


def estimate(launches: Launches) -> Estimate:
    """The median of the launches' medians, and where 95 % of its bootstrap lies."""
    medians = _resampled(launches, np.random.default_rng(0))
    low, high = _interval(medians)
    return Estimate(_middle(launches), low, high)


def change(first: Launches, second: Launches) -> Change:
    """Second over first; NaN where one of the two is not above zero, as a difference of two times may come out."""
    from scipy.stats import mannwhitneyu

    if min(_middle(first), _middle(second)) <= 0:
        return Change(np.nan, np.nan, np.nan, None)
    random = np.random.default_rng(0)
    above, below = _resampled(second, random), _resampled(first, random)
    with np.errstate(invalid="ignore"):
        low, high = _interval(np.divide(above, below, out=np.full_like(above, np.inf), where=below > 0))
    ratio = _middle(second) / _middle(first)
    p = None
    if min(len(first), len(second)) >= LEAST_LAUNCHES:
        sides = [[float(np.median(launch)) for launch in side] for side in (second, first)]
        alternative = "greater" if ratio >= 1 else "less"
        method = "auto" if set(sides[0]) & set(sides[1]) else "exact"  # ties within a side leave it exact
        p = float(mannwhitneyu(*sides, alternative=alternative, method=method).pvalue)
    return Change(ratio, low, high, p)


def _middle(launches: Launches) -> float:
    return float(np.median([np.median(launch) for launch in launches]))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled(launches: Launches, random: np.random.Generator) -> np.ndarray:
    """The median of launch medians, RESAMPLES times, each of launches and samples drawn anew."""
    drawn = np.stack([_medians(launch, random) for launch in launches])
    chosen = random.integers(len(launches), size=(len(launches), RESAMPLES))
    return np.asarray(np.median(np.take_along_axis(drawn, chosen, axis=0), axis=0))


def _medians(samples: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """Of RESAMPLES resamples, without making them.

    A resample of n takes the samples at floor(n u) for n uniform u; its middle ones are those of the u in the middle,
    which are distributed as Beta (David and Nagaraja, Order Statistics, 2.3), the lower one given the upper one.
    """
    ordered, count = np.sort(samples), len(samples)
    half = count // 2
    upper = random.beta(half + 1, count - half, RESAMPLES)
    lower = upper if count % 2 else upper * random.random(RESAMPLES) ** (1 / half)
    places = [np.minimum((count * u).astype(int), count - 1) for u in (lower, upper)]
    return np.asarray((ordered[places[0]] + ordered[places[1]]) / 2)
