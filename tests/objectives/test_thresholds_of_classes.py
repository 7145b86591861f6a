"""Thresholds of classes of which one is predicted, against all others on a fine grid."""

from __future__ import annotations

import numpy as np
import pytest

from aifx.objectives.ranking import choose_thresholds


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        scores, labels, weights = draw(seed)
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
