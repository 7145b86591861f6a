"""AUC, average precision and thresholds against their definitions, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aifx.objectives.ranking import choose_thresholds, ranking


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, many of them equal, with their classes and weights, some of which are 0."""
    rng = np.random.default_rng(seed)
    scores, weights = rng.integers(1, 12, 60) / 12, rng.integers(0, 4, 60).astype(np.float32)
    return scores, rng.random(60) < 0.2 + 0.5 * scores, weights


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_chance_that_a_positive_scores_more(seed: int) -> None:
    scores, positive, weights = draw(seed)
    pairs = weights[positive][:, None] * weights[~positive]
    wins = np.sign(scores[positive][:, None] - scores[~positive]) / 2 + 0.5
    assert ranking(scores, positive, weights).auc() == pytest.approx((wins * pairs).sum() / pairs.sum())


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_the_mean_precision_at_the_positives(seed: int) -> None:
    scores, positive, weights = draw(seed)
    precision = [(weights * positive)[scores >= s].sum() / max(weights[scores >= s].sum(), 1e-9) for s in scores]
    expected = (np.array(precision) * weights * positive).sum() / (weights * positive).sum()
    assert ranking(scores, positive, weights).average_precision() == pytest.approx(expected)


@pytest.mark.parametrize("by", ["f1", "balanced_accuracy"])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed: int, by: str) -> None:
    scores, positive, weights = draw(seed)

    def goodness(threshold: float) -> float:
        taken = scores >= threshold
        hits, alarms = weights[taken & positive].sum(), weights[taken & ~positive].sum()
        if by == "f1":
            return float(2 * hits / (hits + alarms + weights[positive].sum()))
        return float(hits / weights[positive].sum() - alarms / weights[~positive].sum())

    threshold = ranking(scores, positive, weights).threshold(by)  # type: ignore[arg-type]
    assert goodness(threshold) == pytest.approx(max(map(goodness, np.linspace(0.01, 1.01, 200))))
    assert not np.isclose(scores[weights > 0], threshold).any()  # it is between two scores


def test_a_ranking_without_one_kind_is_not_defined() -> None:
    scores, weights = np.array([0.5, 0.25]), np.ones(2)
    positives, negatives, none = (
        ranking(scores, np.array([True, True]), weights),
        ranking(scores, np.array([False, False]), weights),
        ranking(scores[:0], np.array([], bool), weights[:0]),
    )
    assert [math.isnan(each.auc()) for each in (positives, negatives, none)] == [True] * 3
    assert positives.average_precision() == 1.0
    assert math.isnan(negatives.average_precision())
    assert math.isnan(none.threshold("f1"))
    assert math.isnan(ranking(np.array([math.nan, 1.0]), np.array([True, False]), weights).auc())


def draw_logits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and weights, some of which are 0; some examples occur twice, with different labels."""
    rng = np.random.default_rng(seed)
    num_classes, count = int(rng.integers(2, 6)), int(rng.integers(2, 40))
    labels = rng.integers(0, num_classes, count)
    scores = rng.normal(size=(count, num_classes)) + np.eye(num_classes)[labels]
    return scores[rng.integers(0, count, count)] if seed % 2 else scores, labels, rng.integers(0, 3, count) * 1.0


def goodness(scores: np.ndarray, thresholds: np.ndarray, labels: np.ndarray, weights: np.ndarray, by: str) -> float:
    predicted, count = (scores - np.log(thresholds)).argmax(axis=1), scores.shape[1]
    present, named = np.bincount(labels, weights, count), np.bincount(predicted, weights, count)
    hits = np.bincount(labels, weights * (predicted == labels), count)
    part, whole = (2 * hits, present + named) if by == "f1" else (hits, present)
    return float(np.divide(part, whole, out=np.zeros(count), where=whole > 0).sum())


@pytest.mark.parametrize("by", ["f1", "balanced_accuracy"])
def test_no_other_threshold_of_one_class_is_better(by: str) -> None:
    for seed in range(40):
        scores, labels, weights = draw_logits(seed)
        chosen = choose_thresholds(scores, labels, weights, by)  # type: ignore[arg-type]
        found = goodness(scores, chosen, labels, weights, by)
        assert chosen.sum() == pytest.approx(1)
        assert found >= goodness(scores, np.ones_like(chosen), labels, weights, by) - 1e-9, seed
        last = np.eye(len(chosen))[-1]  # the one that was chosen last, with the others at their final values
        others = (goodness(scores, chosen * np.exp(last * x), labels, weights, by) for x in np.linspace(-9, 9, 300))
        assert found >= max(others) - 1e-9, seed


def test_scores_that_say_nothing_have_equal_thresholds() -> None:
    weights = np.ones(2)
    for scores in (np.full((2, 3), np.nan), np.zeros((2, 3))[:, :1]):
        chosen = choose_thresholds(scores, np.array([0, 0]), weights, "f1")
        assert chosen.tolist() == [1 / scores.shape[1]] * scores.shape[1]
