"""The base class of objectives: additive sums over a batch, and the metrics that are formed of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import jax
import numpy as np

from aifx.config.best_by import Direction
from aifx.config.sections import Section
from aifx.core.errors import ConfigError
from aifx.data.base import undefined
from aifx.data.spec import DataSpec
from aifx.models.base import Head, Model
from aifx.parallel.context import ForwardContext
from aifx.specs import Params

DeviceBatch: TypeAlias = Mapping[str, jax.Array]

Sums: TypeAlias = dict[str, tuple[jax.Array, jax.Array]]
"""Additive (total, weight) by name, float32 scalars or small arrays. Training follows total / weight of "loss".

When evaluating, `Rows` may be among them."""


class Rows(NamedTuple):
    """Numbers of each row, in place of sums: evaluation collects them in the order of the split.

    What no sum can say needs them, such as an order of all scores. They take memory on the host for the whole split.
    """

    values: jax.Array  # [rows, ...]
    weights: jax.Array  # [rows]; 0 on rows that only fill a batch


RowSums: TypeAlias = Mapping[str, tuple[Any, Any]]
"""(totals, weights) by name, `[rows]` or `[rows, targets]` each, which add up to `Sums`; and `Rows` as they are."""


class Ratio(NamedTuple):
    """A metric as parts of a ratio: the sum of the totals over that of the weights, of any rows.

    Attributes:
        totals: `[rows]`, or `[rows, targets]` if a row holds targets of several documents.
        weights: the same shape; 0 on what does not count.
    """

    totals: np.ndarray
    weights: np.ndarray
    direction: Direction = "min"


Predictions: TypeAlias = dict[str, jax.Array]
"""By name, `[examples, ...]`."""

Totals: TypeAlias = Mapping[str, tuple[Any, Any]]
"""The same on the host, added up over batches in float64; `Rows` joined."""


@dataclass(frozen=True)
class WorstError:
    """An example that the model predicts badly."""

    row: int  # its number in the order of the split, from 0
    facts: Mapping[str, Any]  # what it is and what was predicted, by name: text, numbers and lists of them


class Objective:
    """The aim of a training: its loss, metrics and predictions. Derive from it."""

    unit: ClassVar[str] = "examples"  # what throughput counts, a name in `Dataset.counts`
    divides: ClassVar[tuple[str, ...]] = ()  # logical axes that devices may divide between hidden vectors and loss

    def __init__(self, section: Section | None = None) -> None:
        """`section`: the settings in `[objective]`."""

    def check_data(self, data: DataSpec) -> None:
        """Raise ConfigError if this objective cannot be computed on such data. By default all data will do."""

    def model_data(self, data: DataSpec) -> DataSpec:
        """The spec that the model is made for: by default the data's own. `target_size` is its number of outputs."""
        return data

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """Additive sums over the batch, "loss" among them. Runs inside jit, in the dtype of the params.

        "examples" is reserved for what aifx counts on the host, as all names in `Dataset.counts` are.
        """
        raise undefined(type(self), "sums", "be trained")

    def row_sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> RowSums:
        """The sums of an evaluation by row, of which groups and slices of rows are formed. Runs inside jit.

        By default `sums` of one row after the other. An objective that finds them for all rows at once is faster.
        """

        def of_row(row: tuple[DeviceBatch, jax.Array]) -> Any:
            fields, row_id = row
            one = replace(ctx, row_ids=row_id[None])
            sums = self.sums(model, params, {name: values[None] for name, values in fields.items()}, one)
            return {
                name: Rows(pair[0][0], pair[1][0]) if isinstance(pair, Rows) else tuple(map(ctx.layout.sum_row, pair))
                for name, pair in sums.items()
            }

        found: RowSums = jax.lax.map(of_row, (dict(batch), ctx.row_ids))
        return found

    def ratios(self, sums: RowSums, data: DataSpec) -> dict[str, Ratio]:
        """The metrics that are ratios of sums over rows, by their names in `metrics`, from `row_sums` on the host.

        By default each pair of numbers. Less is better, except of LARGER_IS_BETTER. `aifx eval --against` compares by
        these, and `eval.slices` reports them.
        """
        pairs = {name: pair for name, pair in sums.items() if not isinstance(pair, Rows) and np.ndim(pair[0]) == 1}
        return {
            name: Ratio(pair[0], pair[1], "max" if name in LARGER_IS_BETTER else "min") for name, pair in pairs.items()
        }

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """Numbers by name ("loss", "accuracy"); nested reports may be among them.

        Args:
            totals: the sums over all batches; when evaluating also each count of `Dataset.counts`, with weight 1.
        """
        return {name: mean(pair) for name, pair in totals.items()}

    def thresholds(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The threshold of each class that a report on the validation split chose; empty if there are none.

        A run keeps them with its checkpoints.
        """
        return {}

    def decides_by(self, data: DataSpec) -> dict[str, float]:
        """The threshold of each class by which `decode` names classes; empty if it uses none."""
        return {}

    def with_thresholds(self, thresholds: Mapping[str, float]) -> Self:
        """The objective that decides by these thresholds, which a run kept."""
        return self

    def worst_errors(self, totals: Totals, data: DataSpec, count: int) -> list[WorstError]:
        """Up to `count` examples with the largest errors, the worst first, from the `Rows` of `sums`. By default none.

        `aifx eval --html` shows them.
        """
        return []

    def combine(self, outputs: jax.Array) -> jax.Array:
        """The outputs `[rows, outputs]` of an ensemble, from those of its members `[members, rows, outputs]`.

        By default their mean. Runs inside jit.
        """
        return outputs.mean(axis=0)

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """The model's predictions for each example of a batch of `DataFormat.encode`'s arrays: `[examples, ...]`.

        Runs inside jit, in the dtype of the params. The last batch ends with examples of zeros.
        """
        raise undefined(type(self), "predictions", "make predictions")

    def decode(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
        """The record that is written for a row, from the predictions for its examples.

        By default the predictions of a row's one example as Python's numbers and lists.
        """
        return {name: values[0].tolist() for name, values in predictions.items()}

    def decode_rows(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> list[dict[str, Any]]:
        """The records of rows with one example each, `[rows, ...]`: for each what `decode` returns, as plain values.

        By default it is not called. A class that defines it and `decode` decodes a batch at once, which is faster.
        """
        raise undefined(type(self), "decode_rows", "decode rows at once")

    def outcome_sums(
        self, predictions: Sequence[Mapping[str, Any]], outcomes: Sequence[Any], data: DataSpec
    ) -> RowSums | None:
        """What `row_sums` gives, from predictions as `decode` makes them and from what then happened, one per row.

        An outcome that is missing, or that the model does not know, has the weight 0. By default None: `aifx monitor`
        compares no predictions with outcomes then.
        """
        return None


LARGER_IS_BETTER = frozenset({"accuracy", "margin", "chosen"})
"""Metrics of `ratios` of which more is better, unless an objective says it itself."""


def largest(values: np.ndarray, count: int) -> list[int]:
    """The places of the `count` largest of the values `[rows]` that are more than 0, the largest first."""
    order = np.argsort(-values, kind="stable")[:count]
    return [int(row) for row in order if values[row] > 0]


def mean(pair: tuple[Any, Any]) -> float:
    """Total over weight; not a number if nothing counts."""
    total, weight = map(float, pair)
    return total / weight if weight else math.nan


def outputs(model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> jax.Array:
    """The head's outputs for the model's hidden vectors: `[tokens or rows, outputs]`, float32 or wider."""
    return head_of(model, params, ctx)(model.hidden(params, batch, ctx))


def head_of(model: Model, params: Params, ctx: ForwardContext) -> Head:
    """The head of a model. Raises ConfigError if it is none."""
    head: Any = model.head(params, ctx)
    if not isinstance(head, Head):
        what = f"{type(model).__name__}.head returned what aifx cannot use"
        why = f"it returned {type(head).__name__}, not an aifx.extend.Head"
        raise ConfigError(what, why, "docs/tasks.md has an example")
    return head
