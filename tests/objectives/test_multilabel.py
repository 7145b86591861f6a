"""Classification with several labels per example, against NumPy."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from forward import CONTEXT
from test_regression import Linear

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec, Field
from aifx.objectives.classification import Multilabel
from aifx.objectives.sections import MultilabelSection
from aifx.parallel.context import ForwardContext

CLASSES = ("scratch", "spot", "crack")
SPEC = DataSpec({"targets": Field((3,), "uint8")}, classes=CLASSES)


def draw() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """A batch whose last rows are filling, weights of a linear model, and its probabilities."""
    rng = np.random.default_rng(0)
    inputs, weight = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    logits = inputs.astype(np.float64) @ weight
    targets = (logits + rng.normal(size=logits.shape) > 0.7).astype(np.uint8)
    weights = np.repeat([1.0, 0.0], [36, 4]).astype(np.float32)
    return {"inputs": inputs, "targets": targets, "weights": weights}, {"weight": weight}, 1 / (1 + np.exp(-logits))


def report(objective: Multilabel, batch: Any, params: Any) -> dict[str, Any]:
    sums = objective.sums(Linear(), params, {k: jnp.asarray(v) for k, v in batch.items()}, CONTEXT)  # type: ignore[arg-type]
    return objective.metrics({name: tuple(map(np.asarray, pair)) for name, pair in sums.items()}, SPEC)


def test_the_report_is_that_of_numpy() -> None:
    batch, params, probabilities = draw()
    found = report(Multilabel(MultilabelSection(threshold_by="none")), batch, params)
    p, y = probabilities[:36], batch["targets"][:36].astype(bool)
    named = p >= 0.5
    assert found["loss"] == pytest.approx(-np.where(y, np.log(p), np.log(1 - p)).mean(), rel=1e-5)
    assert found["exact_match"] == (named == y).all(axis=1).mean()
    recall, specificity = ((named & y).sum(0) / y.sum(0)), ((~named & ~y).sum(0) / (~y).sum(0))
    assert found["balanced_accuracy"] == pytest.approx(np.mean((recall + specificity) / 2))
    f1 = 2 * (named & y).sum(0) / (named.sum(0) + y.sum(0))
    assert found["macro_f1"] == pytest.approx(f1.mean())
    assert [found["per_class"][name]["f1"] for name in CLASSES] == pytest.approx(f1.tolist())
    assert [found["per_class"][name]["examples"] for name in CLASSES] == y.sum(0).tolist()
    assert [found["per_class"][name]["threshold"] for name in CLASSES] == [0.5] * 3
    wins = [np.mean(p[y[:, c], c][:, None] > p[~y[:, c], c]) for c in range(3)]
    assert found["auc"] == pytest.approx(np.mean(wins))
    assert found["examples"] == 36


def test_thresholds_of_its_own_raise_the_f1_of_each_class() -> None:
    batch, params, probabilities = draw()
    plain = report(Multilabel(MultilabelSection(threshold_by="none")), batch, params)
    objective = Multilabel()
    chosen = report(objective, batch, params)
    for name in CLASSES:
        assert chosen["per_class"][name]["f1"] >= plain["per_class"][name]["f1"]
    assert chosen["macro_f1"] > plain["macro_f1"]
    fixed = objective.with_thresholds({"scratch": 0.9, "spot": 0.1, "crack": 0.5})
    values = {"probabilities": np.array([[0.8, 0.2, 0.4]], np.float32)}
    assert fixed.decode(values, SPEC)["labels"] == ["spot"]
    assert objective.decode(values, SPEC)["labels"] == ["scratch"]
    assert list(fixed.decode(values, SPEC)["probabilities"]) == list(CLASSES)
    predicted = objective.predictions(Linear(), params, batch, CONTEXT)["probabilities"]  # type: ignore[arg-type]
    np.testing.assert_allclose(predicted, probabilities, atol=1e-5)


def test_training_sums_the_loss_alone() -> None:
    batch, params, _ = draw()
    ctx = ForwardContext(CONTEXT.layout, training=True)
    assert set(Multilabel().sums(Linear(), params, batch, ctx)) == {"loss"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataSpec({"targets": Field((3,), "uint8")}), "needs data with classes"),
        (DataSpec({"targets": Field((), "int32")}, classes=CLASSES), "needs 3 targets per example"),
    ],
)
def test_data_that_does_not_fit(data: DataSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Multilabel().check_data(data)
