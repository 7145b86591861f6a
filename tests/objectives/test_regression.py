"""Regression against NumPy, and data that an objective cannot be computed from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.config.sections import ObjectiveSection
from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec, Field
from aifx.models.base import Head
from aifx.objectives.classification import Classification
from aifx.objectives.next_token import NextToken
from aifx.objectives.regression import Regression
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import abstract_layout

CONTEXT = ForwardContext(abstract_layout(1, "cpu", "cpu"))


class Linear:
    """A head alone, over what the batch holds."""

    def hidden(self, params: Any, batch: Any, ctx: ForwardContext) -> jax.Array:
        return jnp.asarray(batch["inputs"])

    def head(self, params: Any, ctx: ForwardContext) -> Head:
        return Head(params["weight"], params.get("bias"))


def spec(targets: tuple[int, ...] | None, dtype: str = "float32", **values: Any) -> DataSpec:
    return DataSpec({} if targets is None else {"targets": Field(targets, dtype)}, **values)


@pytest.mark.parametrize("size", [1, 3])
def test_sums_are_those_of_numpy(size: int) -> None:
    rng = np.random.default_rng(0)
    weight, inputs = (rng.normal(size=shape).astype(np.float32) for shape in ((5, size), (40, 5)))
    targets = rng.normal(size=(40, size)).astype(np.float32)
    weights = rng.integers(0, 3, 40).astype(np.float32)
    batch = {"inputs": inputs, "targets": targets if size > 1 else targets[:, 0], "weights": weights}
    objective = Regression()
    sums = objective.sums(Linear(), {"weight": weight}, batch, CONTEXT)  # type: ignore[arg-type]
    error = inputs.astype(np.float64) @ weight - targets
    metrics = objective.metrics({**sums, "examples": (40, 1.0)}, spec((size,), target_size=size))
    assert metrics["loss"] == pytest.approx(((error**2).mean(-1) * weights).sum() / weights.sum(), rel=1e-5)
    assert metrics["mean_absolute_error"] == pytest.approx(
        (np.abs(error).mean(-1) * weights).sum() / weights.sum(), rel=1e-5
    )
    assert metrics["examples"] == 40
    predicted = objective.predictions(Linear(), {"weight": weight}, batch, CONTEXT)  # type: ignore[arg-type]
    record = objective.decode({"values": np.asarray(predicted["values"])[:1]}, spec((size,), target_size=size))
    expected = (inputs[0] @ weight).tolist()
    assert record["value"] == pytest.approx(expected if size > 1 else expected[0], rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "data", "words"),
    [
        (NextToken, spec((8,), "int32"), ["needs data with a vocabulary"]),
        (Classification, spec(()), ["needs data with classes"]),
        (Classification, spec((8,), "int32", classes=("a", "b")), ["one label per example", "int32 [8]"]),
        (Classification, spec((), "float32", classes=("a", "b")), ["one label per example", "float32 []"]),
        (Regression, spec(None), ['no "targets", only nothing']),
        (Regression, spec((2,)), ["regression needs 1 targets per example", "float32 [2]"]),
    ],
)
def test_data_that_does_not_fit(objective: Any, data: DataSpec, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        objective(ObjectiveSection()).check_data(data)
    for word in (*words, "docs/tasks.md"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "params", "targets", "words"),
    [
        (
            Regression,
            {"weight": np.ones((5, 2), "f4")},
            np.zeros(4, "f4"),
            ["one output of the model per target", "[4, 2]"],
        ),
        (Classification, {"weight": np.ones((5, 2), "f4")}, np.zeros((4, 3), "i4"), ["one row of outputs per label"]),
        (
            NextToken,
            {"weight": np.ones((5, 2), "f4")},
            np.zeros((4, 3), "i4"),
            ["one hidden vector of the model per token"],
        ),
        (
            NextToken,
            {"weight": np.ones((5, 2), "f4"), "bias": np.zeros(2, "f4")},
            np.zeros((2, 2), "i4"),
            ["a model whose head has no bias"],
        ),
    ],
)
def test_a_model_that_does_not_fit(objective: Any, params: Any, targets: np.ndarray, words: list[str]) -> None:
    batch = {"inputs": np.ones((4, 5), "f4"), "targets": targets, "weights": np.ones(targets.shape[:1], "f4")}
    with pytest.raises(ConfigError) as caught:
        objective(ObjectiveSection()).sums(Linear(), params, batch, CONTEXT)
    for word in words:
        assert word in str(caught.value)
