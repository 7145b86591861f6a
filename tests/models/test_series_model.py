"""The network for series: what it reads, and what it must not."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aifx.data.sections import SeriesSection
from aifx.data.series_windows import series_spec, window_batch
from aifx.data.time_grid import DAY, Calendar, TimeGrid, calendar_of
from aifx.models.series.model import SeriesModel, make
from aifx.models.series.section import SeriesModelSection
from aifx.objectives.base import outputs
from aifx.objectives.quantile import Quantile
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import local_layout
from aifx.specs import init_params, is_spec, map_specs

SERIES = SeriesSection.model_validate({"context": 21, "horizon": 5, "known": ["price"], "past": ["rain", "wind"]})
CALENDAR = calendar_of(TimeGrid("2001-01-01", DAY, "microseconds"), 1000)
ROWS = 3


def model_of(series: SeriesSection = SERIES, **settings: object) -> SeriesModel:
    section = SeriesModelSection.model_validate({"embed_dim": 8, "width": 16} | settings)
    return make(section, Quantile().model_data(series_spec(series, CALENDAR)))


def batch_of(series: SeriesSection = SERIES) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    steps, covariates = series.context + series.horizon, len(series.known) + len(series.past)
    values = rng.normal(size=(ROWS, steps)) + 10
    values[1, 3:6] = np.nan
    tokens = np.stack([CALENDAR.tokens(CALENDAR.grid.times(np.arange(row, row + steps))) for row in range(ROWS)])
    return window_batch(series, values, tokens, rng.normal(size=(ROWS, steps, covariates)).astype(np.float32))


def random_params(model: SeriesModel) -> Any:
    """Parameters of which none is zero."""
    rng = np.random.default_rng(0)
    return map_specs(lambda spec: jnp.asarray(0.3 * rng.normal(size=spec.shape), jnp.float32), model.specs())


@partial(jax.jit, static_argnums=0)
def forward(model: SeriesModel, params: Any, batch: Any) -> jax.Array:
    return outputs(model, params, batch, ForwardContext(local_layout(1)))


@pytest.mark.slow
def test_each_step_of_the_horizon_has_its_outputs() -> None:
    model, params = model_of(), random_params(model_of())
    found = forward(model, params, batch_of())
    assert found.shape == (ROWS * 5, 3)
    assert found.dtype == jnp.float32
    narrow = forward(model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), batch_of())
    np.testing.assert_allclose(narrow, found, atol=0.3)
    assert model.flops(2) == 2 * model.flops(1) > 0


def test_one_step_without_covariates_or_a_calendar() -> None:
    series = SeriesSection.model_validate({"context": 21})
    calendar = Calendar(CALENDAR.grid, ())
    model = make(SeriesModelSection.model_validate({}), Quantile().model_data(series_spec(series, calendar)))
    assert {"calendar", "known"}.isdisjoint(model.specs())
    batch = {name: values for name, values in batch_of(series).items() if name != "calendar"}
    assert jax.eval_shape(partial(forward, model), random_params(model), batch).shape == (ROWS, 3)


@pytest.mark.parametrize("name", ["inputs", "observed", "calendar", "known", "past"])
def test_every_field_is_read(name: str) -> None:
    model, batch = model_of(), batch_of()
    params = random_params(model)
    changed = batch | {
        name: np.where(batch[name] == 0, 1, 0).astype(batch[name].dtype) if name != "inputs" else -batch[name]
    }
    assert np.abs(forward(model, params, batch) - forward(model, params, changed)).max() > 1e-3


def test_a_missing_step_and_the_targets_are_not_read() -> None:
    model, batch = model_of(), batch_of()
    params = random_params(model)
    found = forward(model, params, batch)
    hidden = batch | {"inputs": np.where(batch["observed"] > 0, batch["inputs"], 1e3).astype(np.float32)}
    for name in ("targets", "weights", "location", "scale"):
        hidden[name] = batch[name] + 1
    np.testing.assert_array_equal(forward(model, params, hidden), found)


@pytest.mark.slow
def test_every_parameter_is_trained() -> None:
    model, batch = model_of(), {name: jnp.asarray(values) for name, values in batch_of().items()}
    ctx = ForwardContext(local_layout(1), training=True, key=jax.random.key(2), row_ids=jnp.arange(ROWS))

    def loss(params: Any) -> jax.Array:
        return Quantile().sums(model, params, batch, ctx)["loss"][0]

    gradients = jax.jit(jax.grad(loss))(random_params(model))
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


@pytest.mark.slow
def test_a_model_starts_without_knowledge_of_a_day() -> None:
    specs = model_of().specs()
    params = init_params(specs, jax.random.key(0))
    assert not params["calendar"].any()
    assert specs["calendar"].shape == (CALENDAR.vocab_size, 8)
    for spec in jax.tree.leaves(specs, is_leaf=is_spec):
        assert spec.decay == (len(spec.shape) == 2)


@pytest.mark.slow
def test_a_coarse_block_forecasts_a_line() -> None:
    """A block that averages more steps than the horizon has one knot: it adds the same to each step."""
    series = SERIES.model_copy(update={"known": (), "past": ()})
    model = model_of(series, pooling=[7])
    params = random_params(model)
    batch = batch_of(series)
    ctx = ForwardContext(local_layout(1))
    changed = batch | {"inputs": batch["inputs"] + 1.0}
    difference = model.hidden(params, changed, ctx) - model.hidden(params, batch, ctx)
    by_step = np.asarray(difference).reshape(ROWS, series.horizon, -1)
    np.testing.assert_allclose(by_step, np.broadcast_to(by_step[:, :1], by_step.shape), atol=1e-5)
    assert np.abs(by_step).max() > 1e-3
