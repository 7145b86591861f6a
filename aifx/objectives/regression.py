"""Regression: one or several numbers per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from aifx.data.columns import number_or_nan
from aifx.data.spec import DataSpec
from aifx.models.base import Model
from aifx.objectives.base import (
    DeviceBatch,
    Objective,
    Predictions,
    Ratio,
    Rows,
    RowSums,
    Sums,
    Totals,
    WorstError,
    largest,
    mean,
    outputs,
)
from aifx.objectives.checks import check_targets, misfit
from aifx.parallel.context import ForwardContext
from aifx.specs import Params


class Regression(Objective):
    """Mean squared error of `targets` float32 `[rows]` or `[rows, target_size]`, over all numbers of an example.

    The loss is that of the scaled targets of a batch. Other metrics and predictions are in the data's own unit.
    """

    def check_data(self, data: DataSpec) -> None:
        check_targets(data, f"regression needs {data.target_size} targets per example", "fiu", data.target_size)
        weights = data.fields.get("weights")
        if weights is not None and weights.shape:
            raise misfit("regression needs one weight per example", f"those of the data are {list(weights.shape)}")

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """Over examples: "loss", the squared error, and "mean_absolute_error"; when evaluating also rows of both."""
        predicted, weights = outputs(model, params, batch, ctx).astype(jnp.float32), batch["weights"]
        if predicted.size != batch["targets"].size:
            why = f"the outputs are {list(predicted.shape)}, the targets {list(batch['targets'].shape)}"
            raise misfit("regression needs one output of the model per target", why)
        error = predicted - batch["targets"].reshape(predicted.shape)
        weight = weights.sum()
        sums: Sums = {
            "loss": ((jnp.square(error).mean(axis=-1) * weights).sum(), weight),
            "mean_absolute_error": ((jnp.abs(error).mean(axis=-1) * weights).sum(), weight),
        }
        if not ctx.training:
            sums |= {"predicted": Rows(predicted, weights), "errors": Rows(error, weights)}
        return sums

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """loss, mean_absolute_error, and when evaluating examples."""
        error = mean(totals["mean_absolute_error"]) * data.target_scale
        metrics = {"loss": mean(totals["loss"]), "mean_absolute_error": error}
        return metrics | ({"examples": round(float(totals["examples"][0]))} if "examples" in totals else {})

    def row_sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> RowSums:
        return {name: pair for name, pair in self.sums(model, params, batch, ctx).items() if isinstance(pair, Rows)}

    def ratios(self, sums: RowSums, data: DataSpec) -> dict[str, Ratio]:
        """loss and mean_absolute_error."""
        errors, weights = sums["errors"]
        errors, weights = errors.astype(np.float64), weights.astype(np.float64)
        return {
            "loss": Ratio(np.square(errors).mean(axis=-1) * weights, weights),
            "mean_absolute_error": Ratio(np.abs(errors).mean(axis=-1) * weights * data.target_scale, weights),
        }

    def outcome_sums(
        self, predictions: Sequence[Mapping[str, Any]], outcomes: Sequence[Any], data: DataSpec
    ) -> RowSums:
        rows, size = len(outcomes), data.target_size
        actual = np.array([number_or_nan(one) for one in outcomes]) if size == 1 else np.array(outcomes, np.float64)
        predicted = np.array([one["value"] for one in predictions], np.float64).reshape(rows, size)
        error = (predicted - actual.reshape(rows, size)) / data.target_scale
        weights = np.isfinite(error).all(axis=-1).astype(np.float64)
        error = np.where(weights[:, None] > 0, error, 0.0)
        return {
            "loss": (np.square(error).mean(axis=-1) * weights, weights),
            "mean_absolute_error": (np.abs(error).mean(axis=-1) * weights, weights),
            "predicted": Rows((predicted - data.target_mean) / data.target_scale, weights),  # type: ignore[arg-type]
            "errors": Rows(error, weights),  # type: ignore[arg-type]
        }

    def worst_errors(self, totals: Totals, data: DataSpec, count: int) -> list[WorstError]:
        (predicted, weights), (errors, _) = totals["predicted"], totals["errors"]

        def in_unit(values: np.ndarray) -> list[float]:
            return (values * data.target_scale + data.target_mean).tolist()  # type: ignore[no-any-return]

        squared = np.where(weights > 0, np.square(errors).mean(axis=-1), 0.0)
        return [
            WorstError(row, {"is": in_unit(predicted[row] - errors[row]), "predicted": in_unit(predicted[row])})
            for row in largest(squared, count)
        ]

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """For each example: "values", float32 `[examples, target_size]`."""
        return {"values": outputs(model, params, batch, ctx).astype(jnp.float32)}

    def decode(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
        """The predicted "value", a list if there are several."""
        (found,) = self.decode_rows(predictions, data)
        return found

    def decode_rows(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> list[dict[str, Any]]:
        values = predictions["values"] * data.target_scale + data.target_mean
        return [{"value": row if data.target_size > 1 else row[0]} for row in values.tolist()]
