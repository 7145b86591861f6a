"""Metrics by outcomes, and the estimate of the accuracy before these arrive."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
from made_once import made_once
from scipy.special import expit
from table_project import train_table_project

import aifx
from aifx.config.gates import parse_gate
from aifx.data.spec import DataSpec
from aifx.feedback.performance import Performance, Predicted, measure_performance, platt
from aifx.objectives.classification import Classification
from aifx.objectives.regression import Regression

BINARY = DataSpec({}, classes=("down", "up"))


def predictions(up: Any) -> list[dict[str, Any]]:
    """What a classifier says of rows with this probability of "up"."""
    return [
        {"label": label, "probability": p if label == "up" else 1 - p, "probabilities": {"down": 1 - p, "up": p}}
        for p, label in ((p, "up" if p > 0.5 else "down") for p in np.asarray(up).tolist())
    ]


def drawn(count: int, seed: int, overconfident: float = 1.0) -> Predicted:
    """Predictions that are right as often as they say, or that say too much."""
    draw = np.random.default_rng(seed)
    score = 2 * draw.normal(size=count)
    outcomes = np.where(draw.random(count) < expit(score), "up", "down")
    return Predicted(predictions(expit(score * overconfident)), outcomes.tolist())


def measured(now: Predicted, reference: Predicted | None = None, **given: Any) -> tuple[Performance, dict[str, str]]:
    found, unmeasured = measure_performance(Classification(), BINARY, now, reference, **given)
    assert found is not None
    return found, unmeasured


def value_of(found: Performance, metric: str, of: str = "measured") -> Any:
    return next(one for one in found.metrics if (one.metric, one.of) == (metric, of))


def test_a_value_beyond_a_gate_is_breached_only_if_its_whole_interval_is() -> None:
    now = drawn(400, seed=1)
    accuracy = value_of(measured(now)[0], "accuracy")
    gates = [parse_gate(f"accuracy >= {bound:.4f}") for bound in (accuracy.low, accuracy.value + 0.001, 0.999)]
    found, _ = measured(now, gates=gates)
    assert [(one.passed, one.breached) for one in found.limits] == [(True, False), (False, False), (False, True)]
    assert found.breached == (gates[-1].expr,)


def test_a_nested_metric_has_an_interval_and_one_that_is_not_there_a_reason() -> None:
    gates = [parse_gate(expr) for expr in ("per_class.up.recall >= 0.5", "f3 >= 1", "slices.land.x.accuracy >= 0.9")]
    found, unmeasured = measured(drawn(400, seed=1), gates=gates)
    recall = value_of(found, "per_class.up.recall")
    assert recall.low < recall.value < recall.high
    assert set(unmeasured) >= {"f3 >= 1", "slices.land.x.accuracy >= 0.9"}


def test_rows_of_one_customer_make_the_interval_wider() -> None:
    one = drawn(100, seed=2)
    rows = Predicted([*one.predictions] * 4, [*one.outcomes] * 4)
    alone, _ = measured(rows)
    together, _ = measured(Predicted(rows.predictions, rows.outcomes, [*range(100)] * 4))
    widths = [value_of(found, "brier").high - value_of(found, "brier").low for found in (alone, together)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.1)  # 100 customers, not 400 rows


def test_outcomes_that_are_missing_or_unknown_are_counted_and_no_metric_has_them() -> None:
    now = drawn(400, seed=3)
    outcomes = [None, "", "sideways", *now.outcomes[3:]]
    found, _ = measured(Predicted(now.predictions, outcomes))
    assert (found.outcomes, found.pending, found.unknown) == (397, 2, 1)
    rest, _ = measured(Predicted(now.predictions[3:], now.outcomes[3:]))
    assert value_of(found, "accuracy") == value_of(rest, "accuracy")


def test_few_outcomes_are_no_metric() -> None:
    now = drawn(200, seed=4)
    rows = Predicted(now.predictions, [*now.outcomes[:29], *[None] * 171])
    found, unmeasured = measure_performance(Classification(), BINARY, rows, None)
    assert found is None
    assert "29 rows" in unmeasured["outcomes"]
    assert "held-out" in unmeasured["estimate"]


def test_a_regression_is_measured_and_never_estimated() -> None:
    draw = np.random.default_rng(0)
    actual = draw.normal(20, 5, 300)
    rows = Predicted([{"value": one} for one in actual + 2 * draw.normal(size=300)], actual.tolist())
    spec = DataSpec({}, target_mean=20.0, target_scale=5.0)
    found, unmeasured = measure_performance(Regression(), spec, rows, rows)
    assert found is not None
    error = value_of(found, "mean_absolute_error")
    assert error.value == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.1)  # in the unit of the data
    assert error.low < error.value < error.high
    assert error.reference == pytest.approx(error.value)
    assert value_of(found, "loss").value == pytest.approx(4 / 25, rel=0.2)
    assert "confidences" in unmeasured["estimate"]


def test_what_calibrates_is_the_logistic_regression_of_the_rows() -> None:
    draw = np.random.default_rng(0)
    score = 3 * draw.normal(size=50_000)
    is_right = draw.random(50_000) < expit(0.5 * score + 0.3)
    assert platt(score, is_right, np.ones(50_000)) == pytest.approx((0.5, 0.3), abs=0.03)
    slope, offset = platt(np.ones(60), np.arange(60) < 45, np.ones(60))  # one confidence
    assert expit(slope + offset) == pytest.approx(0.75, abs=0.02)
    assert np.isfinite(platt(score[:60], score[:60] > 0, np.ones(60))).all()  # a line divides them


def test_confidence_that_says_too_much_is_calibrated() -> None:
    now, reference = (drawn(2000, seed, overconfident=4) for seed in (5, 6))
    found, _ = measured(Predicted(now.predictions, [None] * 2000), reference)
    estimate = value_of(found, "accuracy", "estimated")
    actual = np.mean([one["label"] == outcome for one, outcome in zip(now.predictions, now.outcomes, strict=True)])
    assert estimate.low < actual < estimate.high
    said = np.mean([one["probability"] for one in now.predictions])
    assert said > estimate.high  # what the model says of itself
    assert set(found.precision) == {"up", "down"}


@pytest.mark.slow
@pytest.mark.parametrize(("run", "settings"), [("main", []), ("sure", ["train.num_steps=400", "model.width=256"])])
def test_the_interval_of_the_estimate_holds_the_accuracy_that_outcomes_show(
    run: str, settings: list[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of trained models, one of them sure of what it knows, for rows that moved by up to a standard deviation."""
    root = tmp_path / "project"
    shutil.copytree(made_once(tmp_path_factory, "table-run", train_table_project) / "project", root, symlinks=True)
    if settings:
        options = [
            word for one in (*settings, "model.dropout=0", "optimizer.learning_rate=0.02") for word in ("--set", one)
        ]
        done = inprocess.run(["train", "--run", run, *options], root, os.environ)
        assert done.returncode == 0, done.stderr
    loaded = aifx.load(root / "runs" / run, step="last")
    draw = np.random.default_rng(0)

    def rows(count: int, shift: float) -> Predicted:
        x, y = draw.normal(size=(2, count))
        x = x + shift
        outcomes = np.where(x + y + draw.normal(size=count) > 0, "up", "down")
        found = loaded.predict([{"x": a, "y": b} for a, b in zip(x.tolist(), y.tolist(), strict=True)])
        return Predicted(list(found), outcomes.tolist())

    held, simulations = 0, 200
    for _ in range(simulations):
        reference, now = rows(500, 0.0), rows(int(draw.integers(100, 1000)), float(draw.uniform(-1, 1)))
        found, _ = measure_performance(loaded.trained.task.objective, loaded.trained.task.data, now, reference)
        assert found is not None
        estimate = value_of(found, "accuracy", "estimated")
        held += estimate.low <= value_of(found, "accuracy").value <= estimate.high
    assert 0.91 * simulations <= held  # 95 % less three standard errors
