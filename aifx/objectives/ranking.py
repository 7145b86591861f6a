"""Scores of classes over a whole split: ROC curve, average precision, thresholds.

Rankings are exact, also where scores are equal or examples have weights, and agree with scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from aifx.objectives.sections import ThresholdBy


@dataclass(frozen=True)
class Ranking:
    """The examples of a split in the order of a class's score, of which a cut takes all from the first on."""

    scores: np.ndarray  # the different scores, the largest first [cuts]
    hits: np.ndarray  # the weight of examples of the class with this score or a larger one [cuts]
    alarms: np.ndarray  # the weight of the other examples with such a score [cuts]

    @property
    def is_defined(self) -> bool:
        """Whether there are examples of the class and others, and every score is finite."""
        return len(self.hits) > 0 and self.hits[-1] > 0 and self.alarms[-1] > 0

    def auc(self) -> float:
        """The chance that an example of the class has a larger score than another one; NaN if it is not defined."""
        if not self.is_defined:
            return math.nan
        before = np.concatenate([[0.0], self.hits[:-1]])
        area = np.sum(np.diff(self.alarms, prepend=0.0) * (self.hits + before)) / 2
        return float(area / (self.hits[-1] * self.alarms[-1]))

    def average_precision(self) -> float:
        """The mean of the precision at each example of the class; NaN if there is none."""
        if not len(self.hits) or self.hits[-1] <= 0:
            return math.nan
        gained = np.diff(self.hits, prepend=0.0)
        return float(np.sum(gained * self.hits / (self.hits + self.alarms)) / self.hits[-1])

    def threshold(self, by: ThresholdBy) -> float:
        """Halfway below the score of the cut that is best by its F1 or balanced accuracy; NaN if none is defined."""
        if by == "none" or not self.is_defined:
            return math.nan
        positives, negatives = self.hits[-1], self.alarms[-1]
        if by == "f1":
            goodness = 2 * self.hits / (self.hits + self.alarms + positives)
        else:
            goodness = self.hits / positives - self.alarms / negatives
        best = int(np.argmax(goodness))
        following = self.scores[best + 1] if best + 1 < len(self.scores) else 0.0
        return float(self.scores[best] + following) / 2


def ranking(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> Ranking:
    """The ranking of `scores`, `is_positive` (bool) and `weights`, each `[examples]`. One of NaN is not defined."""
    counted = weights > 0
    scores, is_positive, weights = scores[counted], is_positive[counted], weights[counted].astype(np.float64)
    if not np.isfinite(scores).all():
        return Ranking(*np.zeros((3, 0)))
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    is_last = np.append(scores[:-1] != scores[1:], True)[: len(scores)]  # of those with an equal score
    hits = np.cumsum(np.where(is_positive, weights, 0.0)[order])
    alarms = np.cumsum(np.where(is_positive, 0.0, weights)[order])
    return Ranking(scores[is_last], hits[is_last], alarms[is_last])


@dataclass(frozen=True)
class ClassRankings:
    """The numbers that the ranking of each class gives, each `[classes]`."""

    auc: np.ndarray
    average_precision: np.ndarray
    thresholds: np.ndarray


def rank_classes(
    probabilities: Callable[[int], np.ndarray],
    is_positive: Callable[[int], np.ndarray],
    weights: np.ndarray,
    num_classes: int,
    by: ThresholdBy,
) -> ClassRankings:
    """The rankings of all classes, one after the other. Both functions give the numbers of a class, `[examples]`."""
    rows = []
    for number in range(num_classes):
        ranked = ranking(probabilities(number), is_positive(number), weights)
        rows.append((ranked.auc(), ranked.average_precision(), ranked.threshold(by)))
    return ClassRankings(*np.array(rows, np.float64).reshape(num_classes, 3).T)


def mean_of_defined(values: np.ndarray) -> float:
    """The mean of the numbers that are not NaN; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


MOST_SWEEPS = 3

SMALLEST_GAP = 1e-9
"""Between the scores of two examples on either side of a threshold."""


def choose_thresholds(
    log_probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, by: ThresholdBy
) -> np.ndarray:
    """The thresholds `[classes]`, of sum 1, whose predictions have the best mean F1 or recall over classes.

    Begins with equal thresholds and chooses one after the other, each at its best while the others stay: the result is
    never worse than the likeliest class.

    Args:
        log_probabilities: `[examples, classes]`, or anything that differs by a number per example.
        labels: int `[examples]`; weights: `[examples]`.
    """
    counted = weights > 0
    scores = log_probabilities[counted].astype(np.float64)
    labels, weights = labels[counted], weights[counted].astype(np.float64)
    num_classes = log_probabilities.shape[1]
    shifts = np.zeros(num_classes)  # logarithms of the thresholds
    if num_classes > 1 and len(labels) and np.isfinite(scores).all():
        best = -np.inf
        for _ in range(MOST_SWEEPS):
            before = best
            for c in range(num_classes):
                shifts[c], best = _choose(scores - shifts, shifts[c], c, labels, weights, by)
            if best <= before:
                break
    thresholds: np.ndarray = softmax(shifts)
    return thresholds


def _choose(
    scores: np.ndarray, shift: float, c: int, labels: np.ndarray, weights: np.ndarray, by: ThresholdBy
) -> tuple[float, float]:
    """The best shift of class `c`, whose scores have `shift` taken off already, and the mean that it reaches.

    As the shift falls, examples go one by one from their best other class to `c`.
    """
    num_classes, rows = scores.shape[1], np.arange(len(labels))
    lead = scores[:, c] + shift
    others = scores.copy()
    others[:, c] = -np.inf
    other = others.argmax(axis=1)
    lead -= others[rows, other]  # the example is predicted as c while the shift is below it
    order = np.argsort(-lead, kind="stable")
    lead, other, labels, weights = lead[order], other[order], labels[order], weights[order]
    present = np.bincount(labels, weights, num_classes)

    def goodness(hits: np.ndarray, named: np.ndarray, of: np.ndarray) -> np.ndarray:
        whole = present[of] + named if by == "f1" else present[of]
        part = 2 * hits if by == "f1" else hits
        quotient: np.ndarray = np.divide(part, whole, out=np.zeros(len(of)), where=whole > 0)
        return quotient

    # Of the other classes: what each loses as its examples leave it, one after the other.
    named = np.bincount(other, weights, num_classes)
    hits = np.bincount(other, weights * (other == labels), num_classes)
    start = goodness(hits, named, np.arange(num_classes))
    by_class = np.argsort(other, kind="stable")
    of = other[by_class]
    left, lost = (_sums_within(values[by_class], of) for values in (weights, weights * (other == labels)))
    after = goodness(hits[of] - lost, named[of] - left, of)
    is_first = np.append(True, of[1:] != of[:-1])
    previous = np.where(is_first, start[of], np.append(0.0, after[:-1]))
    change = np.empty(len(of))
    change[by_class] = after - previous
    own = goodness(np.cumsum(weights * (labels == c)), np.cumsum(weights), np.full(len(of), c))
    total = np.append(start.sum(), start.sum() + np.cumsum(change) + own)
    is_cut = np.append(True, np.append(lead[:-1] - lead[1:] > SMALLEST_GAP, True))  # between different leads
    now = int(np.searchsorted(-lead, -shift, side="left"))  # how many examples are predicted as c
    best = int(np.argmax(np.where(is_cut, total, -np.inf)))
    if total[best] <= total[now] + 1e-12:
        return shift, float(total[now])
    above = lead[best - 1] if best else lead[0] + 2.0
    below = lead[best] if best < len(lead) else lead[-1] - 2.0
    return float(above + below) / 2, float(total[best])


def _sums_within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The running sum of the values of each group; equal numbers of `groups` stand together."""
    sums = np.cumsum(values)
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    before = np.append(0.0, sums)[starts]
    within: np.ndarray = sums - np.repeat(before, np.diff(np.append(starts, len(groups))))
    return within
