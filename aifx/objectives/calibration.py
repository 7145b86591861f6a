"""Calibration: whether a model is right as often as its probabilities say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

BINS = 15


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The squared distance of probabilities `[rows, classes]` from 1 for the right class and 0 for others: `[rows]`.

    It is 0 to 2 (Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78, 1950).
    """
    right = probabilities[np.arange(len(labels)), labels]
    found: np.ndarray = np.square(probabilities).sum(axis=-1) - 2 * right + 1
    return found


def calibration(confidence: np.ndarray, is_right: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """The expected calibration error, and the bins that it is formed of.

    Rows are sorted by confidence and cut into BINS bins of equal weight, so that each bin's share of right rows is as
    certain as that of the others (Nixon et al., Measuring calibration in deep learning, CVPR workshops 2019; Nguyen and
    O'Connor, Posterior calibration and exploratory analysis for natural language processing models, EMNLP 2015). The
    error is the mean over the bins, by weight, of the distance of that share from the mean confidence. Equal
    confidences stay in one bin, so that the order of the rows has no part in it.

    Args:
        confidence: the probability of what was predicted, `[rows]`.
        is_right: whether that is so, bool `[rows]`.
    """
    kept = (weights > 0) & np.isfinite(confidence)
    confidence, is_right, weights = confidence[kept], is_right[kept], weights[kept].astype(np.float64)
    if not len(weights):
        return {"ece": math.nan, "calibration": []}
    of_value = np.unique(confidence, return_inverse=True)[1]
    by_value = np.bincount(of_value, weights)
    middles = (np.cumsum(by_value) - by_value / 2) / by_value.sum()
    bins = np.minimum((middles * BINS).astype(int), BINS - 1)[of_value]
    mass, sure, right = (np.bincount(bins, weights * x, BINS) for x in (1.0, confidence, is_right))
    used = mass > 0
    mass, sure, right = mass[used], sure[used] / mass[used], right[used] / mass[used]
    rows = zip(sure.tolist(), right.tolist(), mass.tolist(), strict=True)
    return {
        "ece": float((np.abs(sure - right) * mass).sum() / mass.sum()),
        "calibration": [{"confidence": one, "accuracy": share, "weight": weight} for one, share, weight in rows],
    }
