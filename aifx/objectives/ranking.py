"""Scores of a class over a whole split: the area under its ROC curve, its average precision, its best threshold.

All of it is exact, also where scores are equal or examples have weights, and agrees with scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
