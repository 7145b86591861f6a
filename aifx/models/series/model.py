"""A small network for series over time: N-HiTS over what the calendar leaves.

N-HiTS (Challu et al. 2023, arXiv:2201.12886) is a chain of MLPs. Each reads what the ones before left of the series,
averaged over a number of steps, and forecasts a part as coarsely. Here the calendar is taken out first: the time and
the known covariates of a step have features, from which the head makes a value. In the context this value is
subtracted, in the horizon it is a part of the forecast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from aifx.data.spec import DataSpec
from aifx.models.base import Head, Model
from aifx.models.series.section import SeriesModelSection
from aifx.nn import initializers, layers
from aifx.parallel.context import ForwardContext
from aifx.specs import ArraySpec, Params, Specs

BLOCK_GAIN = 0.1
"""First values of what a block adds, as a share of those that keep the variance: a model starts as its calendar."""


class SeriesModel(Model):
    """A network from windows (`aifx.data.series_windows.SeriesData`) to outputs of each step of the horizon.

    Args:
        num_outputs: of each step, such as its quantiles.
        vocab_size: tokens of the calendar, 0 without one.
        num_known, num_past: covariates of each step.
    """

    def __init__(
        self,
        section: SeriesModelSection,
        *,
        context: int,
        horizon: int,
        num_outputs: int,
        vocab_size: int,
        num_known: int,
        num_past: int,
    ) -> None:
        self.section = section
        self.context, self.horizon, self.num_outputs = context, horizon, num_outputs
        self.vocab_size, self.num_known, self.num_past = vocab_size, num_known, num_past

    def specs(self) -> Specs:
        """Arrays by name: `calendar/...`, `known`, `blocks/<i>/first`, ..., `output`."""
        embed, width = self.section.embed_dim, self.section.width
        specs: Specs = {
            "steps": {
                "first": _matrix(embed, width, "embed", "mlp"),
                "first_bias": _vector(width, "mlp"),
                "second": _matrix(width, embed, "mlp", "embed", BLOCK_GAIN),
            },
            "blocks": {str(number): self._block_specs(number) for number in range(len(self.section.pooling))},
            "output": {"weight": _matrix(embed, self.num_outputs, "embed", None), "bias": _vector(self.num_outputs)},
        }
        if self.vocab_size:
            # Zeros: a day that training never saw changes nothing.
            specs["calendar"] = ArraySpec((self.vocab_size, embed), ("vocab", "embed"), initializers.zeros, decay=True)
        if self.num_known:
            specs["known"] = _matrix(self.num_known, embed, None, "embed", BLOCK_GAIN)
        return specs

    def flops(self, rows: int) -> int:
        """Forward and backward: 6 for each weight of a product where it is applied."""
        embed, width = self.section.embed_dim, self.section.width
        of_step = embed * (self.num_known + 2 * width) + embed * self.num_outputs
        of_blocks = 0
        for kernel in self.section.pooling:
            cells, knots = self._cells(kernel), self._knots(kernel)
            of_blocks += width * (cells * (1 + self.num_past) + width + cells + knots * embed)
        return 6 * rows * ((self.context + self.horizon) * of_step + of_blocks)

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        """Features `[rows * horizon, embed]` of each step to forecast."""
        output = params["output"]
        observed = batch["observed"].astype(output["weight"].dtype)
        steps = self._steps(params, batch)
        of_calendar = steps[:, : self.context] @ output["weight"].mean(axis=1) + output["bias"].mean()
        rest = (batch["inputs"].astype(observed.dtype) - of_calendar) * observed
        forecast = steps[:, self.context :]
        past = batch["past"].astype(observed.dtype) if self.num_past else None
        for number in range(len(self.section.pooling)):
            backward, ahead = self._block(params["blocks"][str(number)], number, rest, observed, past, ctx)
            forecast = forecast + ahead
            if backward is not None:
                rest = (rest - backward) * observed
        return forecast.reshape(-1, self.section.embed_dim)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return Head(params["output"]["weight"], params["output"]["bias"])

    def _steps(self, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Features of each step of time, `[rows, context + horizon, embed]`."""
        embed, dtype = self.section.embed_dim, params["output"]["weight"].dtype
        features = jnp.zeros((len(batch["inputs"]) * (self.context + self.horizon), embed), dtype)
        if self.vocab_size:
            tokens = batch["calendar"].reshape(len(features), -1)
            features = features + params["calendar"][tokens].sum(axis=1)
        if self.num_known:
            known = batch["known"].astype(dtype).reshape(len(features), -1)
            features = features + layers.linear(known, params["known"])
        mixed = layers.gelu_tanh(layers.linear(features, params["steps"]["first"], params["steps"]["first_bias"]))
        features = features + layers.linear(mixed, params["steps"]["second"])
        return features.reshape(-1, self.context + self.horizon, embed)

    def _block(
        self,
        params: Params,
        number: int,
        rest: jax.Array,
        observed: jax.Array,
        past: jax.Array | None,
        ctx: ForwardContext,
    ) -> tuple[jax.Array | None, jax.Array]:
        """The part of the context that a block explains, `[rows, context]`, and its forecast `[rows, horizon, embed]`.

        The blocks after it read the context without that part; the last block returns None for it.
        """
        kernel = self.section.pooling[number]
        count = jnp.maximum(self._pooled_sum(observed, kernel), 1.0)
        cells = self._pooled_sum(rest, kernel) / count
        if past is not None:
            averages = self._pooled_sum(past, kernel) / kernel
            cells = jnp.concatenate([cells, averages.reshape(len(cells), -1)], axis=1)
        x = layers.gelu_tanh(layers.linear(cells, params["first"], params["first_bias"]))
        x = layers.gelu_tanh(layers.linear(x, params["second"], params["second_bias"]))
        x = layers.dropout(x, self.section.dropout, ctx, number)
        found = None
        if "backcast" in params:
            found = jnp.repeat(layers.linear(x, params["backcast"]), kernel, axis=1)[:, -self.context :]
        knots = layers.linear(x, params["forecast"]).reshape(len(x), self._knots(kernel), -1)
        return found, jnp.einsum("rke,kh->rhe", knots, _interpolation(self._knots(kernel), self.horizon, x.dtype))

    def _block_specs(self, number: int) -> Specs:
        kernel, width, embed = self.section.pooling[number], self.section.width, self.section.embed_dim
        cells = self._cells(kernel)
        specs: Specs = {
            "first": _matrix(cells * (1 + self.num_past), width, None, "embed"),
            "first_bias": _vector(width, "embed"),
            "second": _matrix(width, width, None, "embed"),
            "second_bias": _vector(width, "embed"),
            "forecast": _matrix(width, self._knots(kernel) * embed, "embed", None, BLOCK_GAIN),
        }
        if number < len(self.section.pooling) - 1:  # nobody reads what the last leaves
            specs["backcast"] = _matrix(width, cells, "embed", None, BLOCK_GAIN)
        return specs

    def _cells(self, kernel: int) -> int:
        return math.ceil(self.context / kernel)

    def _knots(self, kernel: int) -> int:
        """Points of a block's forecast, between which it is linear."""
        return math.ceil(self.horizon / kernel)

    def _pooled_sum(self, x: jax.Array, kernel: int) -> jax.Array:
        """The sum over each `kernel` steps, counted from the last: `[rows, context, ...]` -> `[rows, cells, ...]`."""
        missing = self._cells(kernel) * kernel - self.context
        padded = jnp.pad(x, [(0, 0), (missing, 0), *[(0, 0)] * (x.ndim - 2)])
        return padded.reshape(len(x), self._cells(kernel), kernel, *x.shape[2:]).sum(axis=2)


def make(section: SeriesModelSection, data: DataSpec) -> SeriesModel:
    """The network for windows as `data` describes them."""
    fields = data.fields
    (context,), (horizon,) = fields["inputs"].shape, fields["targets"].shape
    counts = {name: fields[name].shape[-1] if name in fields else 0 for name in ("known", "past")}
    return SeriesModel(
        section,
        context=context,
        horizon=horizon,
        num_outputs=data.target_size // horizon,
        vocab_size=(data.vocab_size or 0) if "calendar" in fields else 0,
        num_known=counts["known"],
        num_past=counts["past"],
    )


def _matrix(inputs: int, outputs: int, reduces: str | None, produces: str | None, gain: float = 1.0) -> ArraySpec:
    init = initializers.normal(gain / math.sqrt(inputs))
    return ArraySpec((inputs, outputs), (reduces, produces), init, matrix=((0,), (1,)), decay=True)


def _vector(size: int, axis: str | None = None) -> ArraySpec:
    return ArraySpec((size,), (axis,), initializers.zeros)


def _interpolation(knots: int, horizon: int, dtype: jnp.dtype) -> jax.Array:
    """Weights `[knots, horizon]` of a line through points that are evenly spread over the horizon."""
    places = np.linspace(0, max(knots - 1, 0), horizon)
    weights = [np.interp(places, np.arange(knots), point) for point in np.eye(knots)]
    return jnp.array(np.stack(weights), dtype)
