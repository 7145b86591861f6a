"""What an objective is: additive sums over a batch, and what is formed of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import jax
import numpy as np

from aifx.core.errors import UsageError
from aifx.data.spec import DataSpec
from aifx.models.base import Model
from aifx.parallel.context import ForwardContext
from aifx.specs import Params

DeviceBatch: TypeAlias = Mapping[str, jax.Array]

Sums: TypeAlias = dict[str, tuple[jax.Array, jax.Array]]
"""Additive (total, weight) by name, float32 scalars or small arrays. Training follows total / weight of "loss"."""

Predictions: TypeAlias = dict[str, jax.Array]
"""By name, `[examples, ...]`."""

Totals: TypeAlias = Mapping[str, tuple[Any, Any]]
"""The same on the host, added up over batches in float64."""


class Objective:
    """What a model is trained for. Derive from it.

    Attributes:
        unit: what throughput counts, a name in `Dataset.counts`: "tokens", "examples".
    """

    unit: ClassVar[str] = "examples"

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """Additive sums over the batch, "loss" among them. Runs inside jit, in the dtype of the params.

        "examples" is reserved for what aifx counts on the host, as all names in `Dataset.counts` are.
        """
        raise NotImplementedError

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """Numbers by name ("loss", "accuracy"); nested reports may be among them.

        Args:
            totals: the sums over all batches; when evaluating also each count of `Dataset.counts`, with weight 1.
        """
        return {name: float(total) / float(weight) for name, (total, weight) in totals.items()}

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """What the model predicts for each example of a batch of `DataFormat.encode`'s arrays: `[examples, ...]`.

        Runs inside jit, in the dtype of the params. The last batch ends with examples of zeros.
        """
        cls = type(self).__name__
        raise UsageError(f"{cls} cannot make predictions", "it does not define predictions", "docs/tasks.md")

    def decode(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
        """The record that is written for a row, from the predictions for its examples.

        By default the predictions of a row's one example as Python's numbers and lists.
        """
        return {name: values[0].tolist() for name, values in predictions.items()}


def outputs(model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> jax.Array:
    """What the head makes of the model's hidden vectors: `[tokens or rows, outputs]`, float32 or wider."""
    head = model.head(params, ctx)
    return head(model.hidden(params, batch, ctx))
