"""Intervals of ratios of sums over groups of rows, and of their difference between two models, by a bootstrap.

Rows of one document, one series or one patient are alike, so groups are drawn, not rows: an interval over rows would be
too narrow (Cameron, Gelbach and Miller, Bootstrap-based improvements for inference with clustered errors, Review of
Economics and Statistics 90, 2008). Both models answered the same rows, so a drawn group brings the sums of both: what
makes a group hard for either of them drops out of the difference.

The interval is the studentized one (bootstrap-t; Efron and Tibshirani, An introduction to the bootstrap, 1993, section
12.5). A resample gives t = (its value - the value) / its standard error, and quantiles of t take the place of those of
the normal distribution. If groups are unequal and their differences skewed, an estimate that is too small comes with a
standard error that is too small, which percentiles of the values do not see and t does.
`benchmarks/paired_bootstrap.py` measures how often each kind of interval is wrong on rows of real runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 4000
TAIL = 20
"""Least expected number of resamples beyond each end of an interval; a smaller `alpha` takes more resamples."""

BLOCK = 1_000_000
"""Draws that are in memory at a time."""

LEAST_GROUPS = 30


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; they are infinite if too few groups differ to say more."""

    value: float
    low: float
    high: float
    error: float  # standard error


def ratio_interval(totals: np.ndarray, weights: np.ndarray, alpha: float = 0.05) -> Interval:
    """The ratio of the sum of `totals` to that of `weights`, `[groups]` each, with its 1 - alpha interval.

    That of a share is Wilson's: if nearly all rows are right, a bootstrap that draws none of the others sees no error
    at all (Brown, Cai and DasGupta, Interval estimation for a binomial proportion, Statistical Science 16, 2001).
    """
    if np.all(weights == 1) and np.isin(totals, (0, 1)).all():
        return _wilson(float(totals.sum()), len(totals), alpha)
    return _interval(np.stack([totals, weights], axis=1)[:, None], alpha)


def difference_interval(first: np.ndarray, second: np.ndarray, alpha: float = 0.05) -> Interval:
    """The ratio of the first less that of the second, with the 1 - alpha interval of the difference.

    Args:
        first, second: total and weight of each group, `[groups, 2]`: both of the same groups.
    """
    return _interval(np.stack([first, second], axis=1), alpha)


def _wilson(right: float, count: int, alpha: float) -> Interval:
    share, z = right / count, NormalDist().inv_cdf(1 - alpha / 2)
    middle, scale = (share + z**2 / (2 * count)), 1 + z**2 / count
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    error = math.sqrt(share * (1 - share) / count)
    return Interval(share, max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0), error)


def _interval(sums: np.ndarray, alpha: float) -> Interval:
    """The interval of the first ratio, less the second if there are two: sums `[groups, sides, 2]`."""
    groups, sides, _ = sums.shape
    flat = sums.reshape(groups, -1).astype(np.float64)
    # The standard error of a resample needs sums of products of a group's numbers, which are sums like any other.
    first, second = np.triu_indices(flat.shape[1])
    moments = np.concatenate([flat, flat[:, first] * flat[:, second]], axis=1)
    value, error = _value_and_error(moments.sum(axis=0)[None], sides, groups)
    count = max(RESAMPLES, math.ceil(2 * TAIL / alpha))
    values, errors = (np.concatenate(parts) for parts in zip(*_resampled(moments, sides, count), strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num((values - value) / errors, nan=0.0, posinf=np.inf, neginf=-np.inf)
    low, high = np.quantile(t, [alpha / 2, 1 - alpha / 2], method="inverted_cdf")
    with np.errstate(invalid="ignore"):
        ends = value - np.nan_to_num(np.array([high, low]) * error, nan=0.0, posinf=np.inf, neginf=-np.inf)
    return Interval(float(value[0]), float(ends[0]), float(ends[1]), float(error[0]))


def _resampled(moments: np.ndarray, sides: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Value and standard error of `count` resamples of the groups, in blocks, always of the same seed."""
    random, groups = np.random.default_rng(0), len(moments)
    found = []
    for start in range(0, count, per_block := max(BLOCK // groups, 1)):
        rows = min(per_block, count - start)
        drawn = random.integers(groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        times = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
        found.append(_value_and_error(times.astype(np.float64) @ moments, sides, groups))
    return found


def _value_and_error(moments: np.ndarray, sides: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The value and its standard error, by the delta method, from sums over groups `[resamples, moments]`.

    A group's part of the error of a ratio T / W is (t - w T / W) / W (Cochran, Sampling techniques, 1977, section 6.3),
    and of a difference that of the first less that of the second: a linear form of its numbers.
    """
    width = 2 * sides
    sums = moments[:, :width]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[:, 0::2] / sums[:, 1::2]
        signs = np.array([1.0, -1.0])[:sides]
        form = np.empty_like(sums)
        form[:, 0::2] = signs / sums[:, 1::2]
        form[:, 1::2] = -signs * ratios / sums[:, 1::2]
        first, second = np.triu_indices(width)
        doubled = np.where(first == second, 1.0, 2.0)
        squares = (moments[:, width:] * form[:, first] * form[:, second] * doubled).sum(axis=1)
        error = np.sqrt(np.maximum(squares, 0.0) * groups / (groups - 1))
    return (ratios * signs).sum(axis=1), error
