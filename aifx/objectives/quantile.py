"""Quantiles of one or several numbers per example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aifx.config.sections import Section
from aifx.data.spec import DataSpec
from aifx.models.base import Model
from aifx.objectives.base import (
    DeviceBatch,
    Objective,
    Predictions,
    Ratio,
    RowSums,
    Sums,
    Totals,
    mean,
    outputs,
)
from aifx.objectives.checks import check_targets, misfit
from aifx.objectives.sections import QuantileSection
from aifx.parallel.context import ForwardContext
from aifx.specs import Params

ROUNDING = 4 * float(np.finfo(np.float32).eps)

METRICS = ("loss", "mape", "mean_absolute_error", "coverage")


class Quantile(Objective):
    """The pinball loss of `targets` float32 `[rows]` or `[rows, target_size]`, over `objective.quantiles`.

    `weights` are those of rows `[rows]` or of targets `[rows, target_size]`. If a batch has "location" and "scale"
    `[rows]`, targets are scaled by them: the loss is that of scaled targets, everything else is in the data's units.
    """

    def __init__(self, section: Section | None = None) -> None:
        of_kind = section if isinstance(section, QuantileSection) else QuantileSection.model_validate({})
        self.quantiles = of_kind.quantiles
        self.median = self.quantiles.index(0.5)

    def check_data(self, data: DataSpec) -> None:
        check_targets(data, f"quantiles need {data.target_size} targets per example", "fiu", data.target_size)

    def model_data(self, data: DataSpec) -> DataSpec:
        """One output per target and quantile."""
        return replace(data, target_size=data.target_size * len(self.quantiles))

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """Over targets: "loss", "mape" in percent of targets other than 0, "mean_absolute_error", and "coverage", the
        share between the lowest and the highest quantile."""
        targets = _by_row(batch["targets"]).astype(jnp.float32)
        predicted = self._outputs(model, params, batch, ctx, num_targets=targets.shape[1])
        if predicted.shape[:2] != targets.shape:
            why = f"the outputs are {list(predicted.shape)}, the targets {list(targets.shape)}"
            raise misfit("quantiles need one output of the model per target and quantile", why)
        weights = jnp.broadcast_to(_by_row(batch["weights"]), targets.shape)
        levels = jnp.array(self.quantiles, jnp.float32)
        error = targets[..., None] - predicted
        pinball = jnp.maximum(levels * error, (levels - 1.0) * error).mean(axis=-1)
        ordered, (location, scale) = jnp.sort(predicted, axis=-1), _units(batch)
        actual, off = location + scale * targets, scale * jnp.abs(targets - ordered[..., self.median])
        is_covered = (ordered[..., 0] <= targets) & (targets <= ordered[..., -1])
        # A target of 0 was scaled and comes back as what rounding left of it.
        is_zero = jnp.abs(actual) <= ROUNDING * (jnp.abs(location) + jnp.abs(scale * targets))
        relative = jnp.where(is_zero, 0.0, weights)
        share = off / jnp.where(is_zero, 1.0, jnp.abs(actual))
        weight = weights.sum()
        return {
            "loss": ((pinball * weights).sum(), weight),
            "mape": (100.0 * (share * relative).sum(), relative.sum()),
            "mean_absolute_error": ((off * weights).sum(), weight),
            "coverage": ((is_covered * weights).sum(), weight),
        }

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """loss, mape [%], mean_absolute_error, coverage, and when evaluating examples."""
        means = {name: mean(totals[name]) for name in METRICS}
        return means | ({"examples": round(float(totals["examples"][0]))} if "examples" in totals else {})

    def ratios(self, sums: RowSums, data: DataSpec) -> dict[str, Ratio]:
        """All metrics but coverage, of which neither more nor less is better."""
        return {name: ratio for name, ratio in super().ratios(sums, data).items() if name != "coverage"}

    def combine(self, outputs: jax.Array) -> jax.Array:
        """The means of each quantile, which a member may give in any order."""
        by_level = outputs.reshape(*outputs.shape[:2], -1, len(self.quantiles))
        return jnp.sort(by_level, axis=-1).mean(axis=0).reshape(outputs.shape[1:])

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """For each example: "quantiles" in increasing order, in the data's units: `[examples, targets, quantiles]`."""
        location, scale = _units(batch)
        ordered = jnp.sort(self._outputs(model, params, batch, ctx), axis=-1)
        return {"quantiles": location[..., None] + scale[..., None] * ordered}

    def decode(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
        """The median as "value", and all "quantiles"; lists if there are several targets."""
        (values,) = predictions["quantiles"]
        by_level = dict(zip(map(str, self.quantiles), values.T.tolist(), strict=True))
        if data.target_size == 1:
            by_level = {level: numbers[0] for level, numbers in by_level.items()}
        return {"value": by_level[str(0.5)], "quantiles": by_level}

    def _outputs(
        self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext, num_targets: int | None = None
    ) -> jax.Array:
        """float32 `[rows, targets, quantiles]`, in any order. One output per target is all of its quantiles."""
        rows, count = len(next(iter(batch.values()))), len(self.quantiles)
        found = outputs(model, params, batch, ctx).astype(jnp.float32)
        if num_targets is not None and found.size == rows * num_targets:
            return jnp.broadcast_to(found.reshape(rows, num_targets, 1), (rows, num_targets, count))
        return found.reshape(rows, -1, count)


def _by_row(array: jax.Array) -> jax.Array:
    """`[rows]` or `[rows, targets]` as `[rows, targets]`."""
    return array.reshape(array.shape[0], -1)


def _units(batch: DeviceBatch) -> tuple[jax.Array, jax.Array]:
    """The location and the scale that take scaled targets to their unit: `[rows, 1]`, or `[1, 1]` without a scale."""
    zero, one = jnp.zeros((1,)), jnp.ones((1,))
    return batch.get("location", zero)[:, None], batch.get("scale", one)[:, None]
