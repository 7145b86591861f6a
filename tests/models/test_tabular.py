"""The network for tables against NumPy, with missing values and columns of unlike bins."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.core.errors import ConfigError
from aifx.data.spec import Column, DataSpec, Field
from aifx.models.tabular.model import LINEAR_SCALE, NUMBER_LIMIT, PERCEPTRON_SCALE, Bins, Tabular, make
from aifx.models.tabular.section import TabularSection
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import abstract_layout
from aifx.specs import count_parameters, init_params

CONTEXT = ForwardContext(abstract_layout(1, "cpu", "cpu"))
COLUMNS = (
    Column("size", "numeric", edges=(-1.0, 0.0, 0.5, 2.0)),
    Column("site", "categorical", categories=("a", "b")),
    Column("mark", "numeric", edges=(0.0, 1.0)),
    Column("open", "boolean", categories=("false", "true")),
)
SECTION = TabularSection(width=8, num_layers=2, embed_dim=3, dropout=0.0)


def network(columns: tuple[Column, ...] = COLUMNS) -> tuple[Tabular, Any]:
    model = network_of(columns)
    return model, init_params(model.specs(), jax.random.key(0))


def network_of(columns: tuple[Column, ...]) -> Tabular:
    spec = DataSpec({"inputs": Field((len(columns),), "float32")}, classes=("x", "y", "z"), columns=columns)
    return make(SECTION, spec)


def outputs(model: Tabular, params: Any, inputs: np.ndarray) -> np.ndarray:
    hidden = model.hidden(params, {"inputs": jnp.asarray(inputs, jnp.float32)}, CONTEXT)
    return np.asarray(model.head(params, CONTEXT)(hidden))


def test_bins_encode_piecewise_linearly() -> None:
    bins = Bins([COLUMNS[0].edges, COLUMNS[2].edges])
    values = np.array([[-3.0, -1.0], [-1.0, 0.0], [-0.25, 0.25], [0.5, 1.0], [1.25, 3.0], [5.0, 0.5]], np.float32)
    expected = [
        [[-2.0, 0, 0], [-1.0, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
        [[0.75, 0, 0], [0.25, 0, 0]],
        [[1, 1, 0], [1, 0, 0]],
        [[1, 1, 0.5], [3, 0, 0]],
        [[1, 1, 3], [0.5, 0, 0]],
    ]
    np.testing.assert_allclose(bins.encode(jnp.asarray(values)), expected, atol=1e-6)


@pytest.mark.slow
def test_the_forward_pass_is_that_of_numpy() -> None:
    model, params = network()
    inputs = np.array([[0.25, 2, 0.5, 3], [-0.5, 0, np.nan, 1]], np.float32)
    random = np.random.default_rng(0)
    params["numbers"]["missing"] = jnp.asarray(random.normal(size=(2, 3)), jnp.float32)
    params["linear"]["weight"] = jnp.asarray(random.normal(size=(10, 3)), jnp.float32)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    encoded = np.array([[[1, 0.5, 0], [0.5, 0, 0]], [[0.5, 0, 0], [0, 0, 0]]])
    numbers = np.einsum("rcb,cbd->rcd", encoded, p["numbers"]["weight"]) + p["numbers"]["bias"]
    numbers[1, 1] += p["numbers"]["missing"][1]
    categories = p["categories"][[[2, 7], [0, 5]]].reshape(2, -1)
    x = np.concatenate([np.maximum(numbers, 0).reshape(2, -1), categories], axis=1)
    for layer in p["hidden"].values():
        x = np.maximum(x @ layer["weight"] + layer["bias"], 0)
    linear = np.concatenate([[[0.25, 0.5, 0, 0], [-0.5, 0, 0, 1]], categories], axis=1)  # numbers, then missing marks
    expected = PERCEPTRON_SCALE * x @ p["output"]["weight"] + p["output"]["bias"]
    expected += LINEAR_SCALE / np.sqrt(4) * linear @ p["linear"]["weight"]
    np.testing.assert_allclose(outputs(model, params, inputs), expected, atol=1e-5)


@pytest.mark.slow
def test_numbers_beyond_the_limit_count_as_the_limit() -> None:
    model, params = network()
    params["linear"]["weight"] = jnp.ones((10, 3))
    inputs = [[NUMBER_LIMIT, 2, -NUMBER_LIMIT, 3], [50, 2, -1e30, 3], [NUMBER_LIMIT - 1, 2, -NUMBER_LIMIT, 3]]
    at_limit, beyond, below = outputs(model, params, np.array(inputs))
    np.testing.assert_array_equal(beyond, at_limit)
    assert (np.abs(below - at_limit) > 1).all()


def test_the_linear_model_of_more_columns_has_smaller_features() -> None:
    few, many = (network_of(tuple(Column(f"x{i}", "numeric", edges=(0.0, 1.0)) for i in range(n))) for n in (4, 16))
    assert (few.linear_scale, many.linear_scale) == (LINEAR_SCALE / 2, LINEAR_SCALE / 4)


@pytest.mark.slow
def test_gradients_of_missing_values_are_finite() -> None:
    model, params = network()
    inputs = np.array([[np.nan, 1, np.nan, 1], [3, 2, 0, 2]], np.float32)

    def loss(params: Any) -> jax.Array:
        hidden = model.hidden(params, {"inputs": jnp.asarray(inputs)}, CONTEXT)
        return (model.head(params, CONTEXT)(hidden) ** 2).sum()

    gradients = jax.grad(loss)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["numbers"]["missing"]).sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("numeric",), ("categorical", "boolean")])
def test_columns_of_one_sort(kinds: tuple[str, ...]) -> None:
    columns = tuple(column for column in COLUMNS if column.kind in kinds)
    model, params = network(columns)
    assert outputs(model, params, np.ones((5, 2))).shape == (5, 3)


@pytest.mark.slow
def test_a_column_of_one_value_or_none_has_no_bins() -> None:
    model, params = network((Column("x", "numeric", edges=(0.0,)), COLUMNS[1]))
    found = outputs(model, params, np.array([[0, 2], [7, 2]]))
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.slow
def test_operations_are_six_per_row_and_weight_of_a_product() -> None:
    model, _ = network()
    weights = 2 * 3 * 3 + 12 * 8 + 8 * 8 + 8 * 3 + (2 * 2 + 2 * 3) * 3
    assert model.flops(10) == 60 * weights
    assert count_parameters(model.specs()) == weights + 2 * (2 * 3) + 8 * 3 + 8 + 8 + 3


def test_data_without_columns() -> None:
    with pytest.raises((ConfigError, ValueError), match="no columns"):
        make(SECTION, DataSpec({"inputs": Field((2,), "float32")}))
