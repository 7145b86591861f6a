"""Quantiles: the pinball loss and its metrics against NumPy, in the units of the data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from aifx.config.parts import resolve
from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec, Field
from aifx.models.base import Head, Model
from aifx.objectives import OBJECTIVES
from aifx.objectives.base import Objective
from aifx.objectives.sections import QuantileSection
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout

LEVELS = (0.2, 0.5, 0.9)
ROWS, TARGETS = 6, 4


class Fixed(Model):
    """A model whose outputs are the batch's "outputs"."""

    def specs(self) -> dict[str, Any]:
        return {}

    def hidden(self, params: Any, batch: Any, ctx: ForwardContext) -> jax.Array:
        return jnp.asarray(batch["outputs"]).reshape(-1, 1)

    def head(self, params: Any, ctx: ForwardContext) -> Head:
        return Head(jnp.ones((1, 1)))

    def flops(self, rows: int) -> int:
        return 0


def quantile() -> Objective:
    objective: Objective = resolve(OBJECTIVES["quantile"].make)(QuantileSection(quantiles=LEVELS))
    return objective


def batch_of(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(ROWS, TARGETS))
    batch = {
        "outputs": targets[..., None] + rng.normal(size=(ROWS, TARGETS, 3)),
        "targets": targets,
        "weights": rng.random((ROWS, TARGETS)) < 0.7,
        "location": rng.normal(size=ROWS) * 100,
        "scale": rng.random(ROWS) * 10 + 1,
    }
    return {name: values.astype(np.float32) for name, values in batch.items()}


@jax.jit
def pairs_of(batch: dict[str, jax.Array]) -> Any:
    return quantile().sums(Fixed(), {}, batch, ForwardContext(local_layout(1)))


def sums(batch: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    pairs = pairs_of(batch)
    return {name: (float(total), float(weight)) for name, (total, weight) in pairs.items()}


def test_sums_are_those_of_numpy() -> None:
    batch = {name: values.astype(np.float64) for name, values in batch_of().items()}
    loss = 0.0
    for k, level in enumerate(LEVELS):
        error = batch["targets"] - batch["outputs"][..., k]
        loss += (np.where(error > 0, level * error, (level - 1) * error) * batch["weights"]).sum() / 3
    ordered = np.sort(batch["outputs"], axis=-1)
    location, scale = batch["location"][:, None], batch["scale"][:, None]
    actual, median = location + scale * batch["targets"], location + scale * ordered[..., 1]
    is_in = (ordered[..., 0] <= batch["targets"]) & (batch["targets"] <= ordered[..., 2])
    found, weight = sums(batch_of()), batch["weights"].sum()
    expected = {
        "loss": loss,
        "mape": (100 * np.abs(actual - median) / np.abs(actual) * batch["weights"]).sum(),
        "mean_absolute_error": (np.abs(actual - median) * batch["weights"]).sum(),
        "coverage": (is_in * batch["weights"]).sum(),
    }
    assert found == {name: (pytest.approx(total, rel=1e-5), weight) for name, total in expected.items()}


@pytest.mark.slow
def test_sums_of_parts_add_up_and_rows_without_weight_count_nothing() -> None:
    batch = batch_of(1)
    whole = sums(batch)
    parts = [sums({name: values[rows] for name, values in batch.items()}) for rows in (slice(0, 2), slice(2, None))]
    for name, pair in whole.items():
        assert pair == pytest.approx(np.sum([part[name] for part in parts], axis=0), rel=1e-5)
    batch["weights"][3] = 0
    for name in ("targets", "outputs", "location", "scale"):
        batch[name][3] = 1e6
    without = sums({name: np.delete(values, 3, axis=0) for name, values in batch.items()})
    assert sums(batch) == {name: pytest.approx(pair, rel=1e-5) for name, pair in without.items()}


def test_a_target_of_zero_has_no_percentage() -> None:
    batch = batch_of(2)
    batch |= {"location": np.zeros(ROWS, np.float32), "weights": np.ones((ROWS, TARGETS), np.float32)}
    batch["targets"][0, 0] = 0
    total, weight = sums(batch)["mape"]
    assert np.isfinite(total)
    assert weight == ROWS * TARGETS - 1


def test_a_target_of_zero_that_was_scaled_has_no_percentage() -> None:
    """Float32 leaves a small rest of some of them instead of 0, which no error is a percentage of."""
    rng = np.random.default_rng(0)
    location, scale = rng.normal(size=500) * 100, rng.random(500) * 10 + 1
    values = np.where(np.arange(500) % 5, 100 + rng.random(500), 0.0)
    batch = {
        "outputs": np.zeros((500, 1, 3)),
        "targets": ((values - location) / scale)[:, None],
        "weights": np.ones(500),
        "location": location,
        "scale": scale,
    }
    total, weight = sums({name: array.astype(np.float32) for name, array in batch.items()})["mape"]
    assert weight == 400
    is_counted = values > 0
    errors = np.abs(location[is_counted] / values[is_counted] - 1)
    assert total / weight == pytest.approx(100 * errors.mean(), rel=1e-4)


def test_weights_of_rows_and_targets_without_a_scale() -> None:
    """As a table has them: one target and one weight per row."""
    batch = {
        "targets": np.array([1.0, 2.0, 4.0], np.float32),
        "weights": np.array([1.0, 0.0, 1.0], np.float32),
        "outputs": np.array([[0.0, 2.0, 3.0], [9.0, 9.0, 9.0], [5.0, 6.0, 7.0]], np.float32),
    }
    found = sums(batch)
    assert found["mean_absolute_error"] == (3.0, 2.0)
    assert found["mape"] == (pytest.approx(150.0), 2.0)
    assert found["coverage"] == (1.0, 2.0)


def test_one_output_per_target_is_all_of_its_quantiles() -> None:
    batch = batch_of(4)
    batch["outputs"] = np.repeat(batch["outputs"][..., :1], 3, axis=-1)
    assert sums(batch | {"outputs": batch["outputs"][..., 0]}) == sums(batch)
    assert sums(batch)["coverage"][0] == 0


def test_predictions_are_in_order_and_in_the_units_of_the_data() -> None:
    batch, ctx = batch_of(3), ForwardContext(local_layout(1))
    kept = {name: jnp.asarray(v) for name, v in batch.items() if name not in ("targets", "weights")}
    values = np.asarray(quantile().predictions(Fixed(), {}, kept, ctx)["quantiles"])
    assert values.shape == (ROWS, TARGETS, 3)
    assert (np.diff(values, axis=-1) >= 0).all()
    scaled = batch["location"][:, None, None] + batch["scale"][:, None, None] * np.sort(batch["outputs"], axis=-1)
    np.testing.assert_allclose(values, scaled, rtol=1e-5)
    several = quantile().decode({"quantiles": values[:1]}, DataSpec({}, target_size=TARGETS))
    assert several["value"] == several["quantiles"]["0.5"] == values[0, :, 1].tolist()
    one = quantile().decode({"quantiles": values[:1, :1]}, DataSpec({}, target_size=1))
    assert one["quantiles"] == {str(level): values[0, 0, k].item() for k, level in enumerate(LEVELS)}


@pytest.mark.parametrize(
    ("quantiles", "word"),
    [((0.9, 0.5), "increase"), ((0.1, 0.9), "0.5"), ((), "at least 1"), ((0.5, 1.0), "less than 1")],
)
def test_quantiles_that_cannot_be(quantiles: tuple[float, ...], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        QuantileSection(quantiles=quantiles)


def test_a_model_has_an_output_per_target_and_quantile() -> None:
    data = DataSpec({"targets": Field((TARGETS,), "float32")}, target_size=TARGETS)
    quantile().check_data(data)
    assert quantile().model_data(data).target_size == TARGETS * 3
    with pytest.raises(ConfigError, match="quantiles need 4 targets"):
        quantile().check_data(DataSpec({}, target_size=TARGETS))
    batch = batch_of()
    batch["targets"] = batch["targets"][:, :2]
    with pytest.raises(ConfigError, match="per target and quantile"):
        sums(batch)
