"""Measures of how far two samples of a column are apart."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10
LEAST_ROWS = 100
"""Rows of each version, at least. The measures of fewer are noise."""


def binned(before: Any, after: Any) -> tuple[Any, Any]:
    """The counts of numbers by bin; each bin holds a tenth of those before."""
    with np.errstate(over="ignore"):  # between the largest numbers of both signs
        edges = np.unique(np.quantile(before, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, one, "right"), minlength=len(edges) + 1) for one in (before, after)]
    return counts[0], counts[1]


def psi(before: Any, after: Any) -> float:
    """The population stability index of counts by bin; half a row is added to each bin, so that none is empty."""
    old, new = before + 0.5, after + 0.5
    old, new = old / old.sum(), new / new.sum()
    return float(((new - old) * np.log(new / old)).sum())


def ks(before: Any, after: Any) -> float:
    """The largest difference of two empirical distribution functions."""
    old, new = np.sort(before), np.sort(after)
    both = np.concatenate([old, new])
    shares = (np.searchsorted(one, both, "right") / len(one) for one in (old, new))
    return float(np.abs(np.subtract(*shares)).max())


def jensen_shannon(before: Any, after: Any) -> float:
    """The Jensen-Shannon distance of counts by bin, from 0 to 1: the root of the divergence with logarithms of base 2.

    Lin 1991, "Divergence measures based on the Shannon entropy"; the root is a metric: Endres and Schindelin 2003.
    """
    old, new = before / before.sum(), after / after.sum()
    mean = (old + new) / 2

    def divergence(one: Any) -> float:
        filled = one > 0
        return float((one[filled] * np.log2(one[filled] / mean[filled])).sum())

    return float(np.sqrt(max(0.0, (divergence(old) + divergence(new)) / 2)))
