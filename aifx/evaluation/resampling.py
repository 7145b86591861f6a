"""Intervals of ratios of sums over groups of rows, and of their difference between two models, by a bootstrap.

Rows of one document, one series or one patient are alike, so groups are drawn, not rows: an interval over rows would be
too narrow (Cameron, Gelbach and Miller, Bootstrap-based improvements for inference with clustered errors, Review of
Economics and Statistics 90, 2008). Both models answered the same rows, so a drawn group brings the sums of both: what
makes a group hard for either of them drops out of the difference.

The interval is the value plus and minus the bootstrap's standard error times a quantile of Student's t (Efron and
Tibshirani, An introduction to the bootstrap, 1993, chapters 6 and 12). The standard error of few groups is uncertain,
which the normal distribution leaves out: it finds "better" falsely too often. Quantiles of the resamples (percentile,
BCa, studentized) follow the skew of the groups, but the skew of 50 groups is hardly known: they find a true difference
in up to 8 % fewer cases. `benchmarks/paired_bootstrap.py` measures each kind on rows of real runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
"""The standard error of so many is that of infinitely many within 1.6 %."""

BLOCK = 1_000_000
"""Draws that are in memory at a time."""

LEAST_GROUPS = 30


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; they are infinite if a single group differs."""

    value: float
    low: float
    high: float
    error: float  # standard error


def ratio_interval(totals: np.ndarray, weights: np.ndarray, alpha: float = 0.05) -> Interval:
    """The ratio of the sum of `totals` to that of `weights`, `[groups]` each, with its 1 - alpha interval."""
    if np.all(weights == 1) and np.isin(totals, (0, 1)).all():
        return share_interval(float(totals.sum()), len(totals), alpha)
    return _interval(np.stack([totals, weights], axis=1)[:, None], alpha)


def difference_interval(first: np.ndarray, second: np.ndarray, alpha: float = 0.05) -> Interval:
    """The ratio of the first less that of the second, with the 1 - alpha interval of the difference.

    Args:
        first, second: total and weight of each group, `[groups, 2]`: both of the same groups.
    """
    return _interval(np.stack([first, second], axis=1), alpha)


def share_interval(right: float, count: int, alpha: float = 0.05) -> Interval:
    """The share of rows that are right with Wilson's interval.

    If nearly all rows are right, a bootstrap that draws none of the others sees no error at all (Brown, Cai and
    DasGupta, Interval estimation for a binomial proportion, Statistical Science 16, 2001).
    """
    share, z = right / count, NormalDist().inv_cdf(1 - alpha / 2)
    middle, scale = (share + z**2 / (2 * count)), 1 + z**2 / count
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    error = math.sqrt(share * (1 - share) / count)
    return Interval(share, max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0), error)


def mean_interval(mean: float, deviation: float, count: int, alpha: float = 0.05) -> Interval:
    """The mean of rows that each are a group, with the interval that a bootstrap of them finds, without drawing."""
    from scipy.special import stdtrit  # as below

    error = deviation / math.sqrt(count)
    half = error * float(stdtrit(count - 1, 1 - alpha / 2))
    return Interval(mean, mean - half, mean + half, error)


def _interval(sums: np.ndarray, alpha: float) -> Interval:
    """The interval of the first ratio, less the second if there are two: sums `[groups, sides, 2]`.

    Groups that both models answer alike say nothing about the spread of a difference, so the degrees of freedom are
    those of the others.
    """
    from scipy.special import stdtrit  # imported here: commands that compare nothing need no SciPy

    groups, sides, _ = sums.shape
    value, error = float(_values(sums.sum(axis=0)[None])[0]), _standard_error(sums)
    differing = groups if sides == 1 else int((sums[:, 0] != sums[:, 1]).any(axis=1).sum())
    half = error and (error * float(stdtrit(differing - 1, 1 - alpha / 2)) if differing > 1 else math.inf)
    return Interval(value, value - half, value + half, error)


def _standard_error(sums: np.ndarray) -> float:
    return float(np.std(np.concatenate([_values(drawn) for drawn in resampled(sums)]), ddof=1))


def resampled(sums: np.ndarray) -> Iterator[np.ndarray]:
    """The sums over groups of RESAMPLES resamples `[resamples, ...]`, in blocks, always of the same seed."""
    random, groups = np.random.default_rng(0), len(sums)
    flat = sums.reshape(groups, -1).astype(np.float64)
    for start in range(0, RESAMPLES, per_block := max(BLOCK // groups, 1)):
        rows = min(per_block, RESAMPLES - start)
        drawn = random.integers(groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        times = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
        yield (times.astype(np.float64) @ flat).reshape(rows, *sums.shape[1:])


def _values(sums: np.ndarray) -> np.ndarray:
    """The first ratio, less the second if there are two: sums `[resamples, sides, 2]`."""
    ratios: np.ndarray = sums[..., 0] / sums[..., 1]
    return ratios[:, 0] if ratios.shape[1] == 1 else ratios[:, 0] - ratios[:, 1]
