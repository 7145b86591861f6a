"""Brier scores and calibration errors of known predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aifx.objectives.calibration import BINS, brier_scores, calibration


def test_the_brier_score_is_the_squared_distance_from_the_truth() -> None:
    probabilities = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    expected = [0.0, 2.0, 0.2**2 + 0.3**2 + 0.5**2]
    assert brier_scores(probabilities, np.array([0, 0, 2])) == pytest.approx([*expected[:2], 0.04 + 0.09 + 0.25])


def test_a_model_that_is_right_as_often_as_it_says_has_a_small_error() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1.0, 30_000)
    is_right = random.uniform(size=30_000) < confidence
    assert calibration(confidence, is_right, np.ones(30_000))["ece"] < 0.02
    too_sure = calibration(confidence, random.uniform(size=30_000) < confidence - 0.2, np.ones(30_000))
    assert too_sure["ece"] == pytest.approx(0.2, abs=0.02)


def test_bins_have_equal_mass_also_where_most_predictions_are_sure() -> None:
    """Bins of equal width would put nine in ten predictions into the last one."""
    random = np.random.default_rng(0)
    found = calibration(random.beta(30, 1, 3000), np.ones(3000, bool), np.ones(3000))["calibration"]
    assert len(found) == BINS
    assert {one["weight"] for one in found} == {200.0}


def test_equal_confidences_are_one_bin_in_any_order() -> None:
    confidence = np.array([0.5] * 40 + [0.9] * 20)
    is_right = np.arange(60) % 2 == 0
    found = calibration(confidence, is_right, np.ones(60))
    turned = calibration(confidence[::-1], is_right[::-1], np.ones(60))
    assert found == turned
    assert [(one["confidence"], one["weight"]) for one in found["calibration"]] == [(0.5, 40.0), (0.9, 20.0)]
    assert found["ece"] == pytest.approx((40 * 0.0 + 20 * 0.4) / 60)


def test_rows_that_do_not_count_and_a_model_that_diverged() -> None:
    weights = np.array([1.0, 1.0, 0.0])
    assert calibration(np.array([0.5, 1.0, 1.0]), np.array([True, True, False]), weights)["ece"] == pytest.approx(0.25)
    assert math.isnan(calibration(np.full(3, np.nan), np.ones(3, bool), np.ones(3))["ece"])
