"""Medians with intervals, and whether one thing is slower than another.

Samples of one launch share its compilation, its memory layout and its luck, so that they say nothing of how launches
differ. The estimate is therefore the median of the launches' medians, its interval comes from a bootstrap that draws
launches and then samples within them, and the test of a difference (Mann-Whitney) takes each launch as one value.

What else runs on a machine only ever adds time, so two things are compared by what each takes when little disturbs it,
the lower decile of a launch (with the minimum for it: Chen and Revels, Robust benchmarking in noisy environments,
arXiv:1608.04295). It scatters less from launch to launch than the median does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
LEAST_LAUNCHES = 5
"""Least launches of each side for a test: with five and five the smallest one-sided p of Mann-Whitney is 1/252."""

SIGNIFICANCE = 0.01

MIDDLE = 0.5
UNDISTURBED = 0.1
"""The share of a launch's samples that are faster than the one that represents it in a comparison."""

Launches = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Estimate:
    """A median and its interval, in the unit of what it was formed of."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """The ratio of the second of two results to the first: above 1 is slower.

    Attributes:
        p: of the one-sided Mann-Whitney test over the launches in the direction seen; None with too few launches.
    """

    ratio: float
    low: float
    high: float
    p: float | None

    @property
    def is_significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANCE


def estimate(launches: Launches, share: float = MIDDLE) -> Estimate:
    """The median of the launches' medians, or of other quantiles, and where 95 % of its bootstrap lies."""
    low, high = _interval(_resampled(launches, share, np.random.default_rng(0)))
    return Estimate(float(np.median([_quantile(launch, share) for launch in launches])), low, high)


def change(first: Launches, second: Launches, share: float = UNDISTURBED) -> Change:
    """Second over first; NaN where one of the two is not above zero, as a difference of two times may come out."""
    from scipy.stats import mannwhitneyu

    sides = [[_quantile(launch, share) for launch in side] for side in (second, first)]
    ours, theirs = (float(np.median(side)) for side in sides)
    if min(ours, theirs) <= 0:
        return Change(np.nan, np.nan, np.nan, None)
    random = np.random.default_rng(0)
    above, below = (_resampled(side, share, random) for side in (second, first))
    with np.errstate(invalid="ignore"):
        low, high = _interval(np.divide(above, below, out=np.full_like(above, np.inf), where=below > 0))
    ratio = ours / theirs
    # Mann-Whitney's test (On a test of whether one of two random variables is stochastically larger than the other,
    # Annals of Mathematical Statistics 18, 1947) counts the pairs of launches, one of each side, in which the second
    # side is slower. If nothing changed, each order of all launches is equally likely, so p is exact without
    # assumptions on the distribution of times, which has a long tail on a shared machine.
    p = None
    if min(len(first), len(second)) >= LEAST_LAUNCHES:
        alternative = "greater" if ratio >= 1 else "less"
        method = "auto" if set(sides[0]) & set(sides[1]) else "exact"  # ties within a side leave it exact
        p = float(mannwhitneyu(*sides, alternative=alternative, method=method).pvalue)
    return Change(ratio, low, high, p)


def _quantile(samples: Sequence[float], share: float) -> float:
    """The median, or the sample below which that share lies."""
    return float(np.median(samples) if share == MIDDLE else np.sort(samples)[int(share * len(samples))])


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled(launches: Launches, share: float, random: np.random.Generator) -> np.ndarray:
    """The median of the launches' quantiles, RESAMPLES times, each of newly drawn launches and samples."""
    # A bootstrap on two levels, as Kalibera and Jones recommend (Rigorous benchmarking in reasonable time, ISMM 2013):
    # launches are drawn with replacement, and samples within each drawn launch. An interval of pooled samples would be
    # too narrow, since samples of one launch are alike.
    drawn = np.stack([_quantiles(launch, share, random) for launch in launches])
    chosen = random.integers(len(launches), size=(len(launches), RESAMPLES))
    return np.asarray(np.median(np.take_along_axis(drawn, chosen, axis=0), axis=0))


def _quantiles(samples: Sequence[float], share: float, random: np.random.Generator) -> np.ndarray:
    """Draw the quantiles of RESAMPLES resamples, without making the resamples.

    A resample of n takes the samples at floor(n u) for n uniform u; its k-th is that of the k-th u, which is
    distributed as Beta(k, n + 1 - k) (David and Nagaraja, Order Statistics, 2.3). Of the two in the middle of an even
    n, the lower one is drawn given the upper one.
    """
    ordered, count = np.sort(samples), len(samples)
    place = int(share * count)
    upper = random.beta(place + 1, count - place, RESAMPLES)
    is_split = share == MIDDLE and count % 2 == 0
    lower = upper * random.random(RESAMPLES) ** (1 / place) if is_split else upper
    places = [np.minimum((count * u).astype(int), count - 1) for u in (lower, upper)]
    return np.asarray((ordered[places[0]] + ordered[places[1]]) / 2)
