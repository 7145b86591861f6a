"""A multilayer perceptron and a linear model over the columns of a table, with embeddings of numbers and categories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aifx.data.spec import Column, DataSpec
from aifx.models.base import Head, Model
from aifx.models.tabular.section import TabularSection
from aifx.nn import initializers, layers
from aifx.parallel.context import ForwardContext
from aifx.specs import ArraySpec, Params, Specs

PERCEPTRON_SCALE, LINEAR_SCALE = 0.3, 35.0
"""Factors of the features of the perceptron and, divided by the root of the columns, of the linear model.

Adam moves each weight by about the learning rate, and so the output of many units much faster than that of a few
inputs. With the factors, the linear model is learned first. A step of many correlated columns moves its output further
than a step of few; dividing by the root keeps it from overshooting. `benchmarks/tables_public.py` names the tables on
which they were chosen."""

NUMBER_LIMIT = 4.0
"""Largest absolute value of a standardized number; larger ones are clipped.

A column that is almost always 0 has standardized values of 20 and more. They would decide the linear model's output
alone, and make it certain of a wrong class."""


class Tabular(Model):
    """A network from inputs `[rows, columns]` to `num_outputs` numbers each.

    A number is encoded by the bins of its column, piecewise linearly, and becomes `embed_dim` numbers by a linear layer
    of its own with a ReLU ("Q-LR" of Gorishniy et al. 2022, arXiv 2203.05556). A standardized number is limited to
    NUMBER_LIMIT. A missing one counts as the mean, and adds a vector of its own. A category has a vector, also if it is
    missing or unknown.

    The outputs are the sum of the perceptron's and of a linear model's over the scaled numbers, marks of the missing
    ones, and the vectors of categories. On few rows, most of what can be learned is linear.
    """

    def __init__(self, section: TabularSection, columns: Sequence[Column], *, num_outputs: int) -> None:
        self.section, self.num_outputs = section, num_outputs
        self.numeric = np.array([i for i, column in enumerate(columns) if not column.is_categorical], np.int32)
        self.categorical = np.array([i for i, column in enumerate(columns) if column.is_categorical], np.int32)
        self.bins = Bins([columns[i].edges for i in self.numeric])
        counts = [columns[i].num_categories for i in self.categorical]
        self.linear_scale = LINEAR_SCALE / math.sqrt(len(columns))
        self.num_categories = sum(counts)
        self.offsets = np.cumsum([0, *counts])[:-1].astype(np.int32)  # of each column in the table of categories

    @property
    def width_in(self) -> int:
        return (len(self.numeric) + len(self.categorical)) * self.section.embed_dim

    @property
    def linear_width(self) -> int:
        return 2 * len(self.numeric) + len(self.categorical) * self.section.embed_dim

    def specs(self) -> Specs:
        """Arrays by name: `numbers` (weight, bias, missing), `categories`, `hidden/<i>` and `output` (weight, bias),
        `linear/weight`."""
        dim, width = self.section.embed_dim, self.section.width
        embeddings: Specs = {}
        if count := len(self.numeric):
            weight = initializers.normal(1 / math.sqrt(self.bins.most))
            vector = ArraySpec((count, dim), (None, "embed"), initializers.normal(1 / math.sqrt(dim)))
            embeddings["numbers"] = {
                "weight": ArraySpec((count, self.bins.most, dim), (None, None, "embed"), weight, decay=True),
                "bias": vector,
                "missing": ArraySpec((count, dim), (None, "embed"), initializers.zeros),
            }
        if self.num_categories:
            shape = (self.num_categories, dim)
            embeddings["categories"] = ArraySpec(shape, (None, "embed"), initializers.normal(0.05), decay=True)
        inputs, hidden = self.width_in, {}
        for i in range(self.section.num_layers):
            hidden[str(i)] = _linear_specs(inputs, width, math.sqrt(2 / inputs))
            inputs = width
        shape = (self.linear_width, self.num_outputs)
        return {
            **embeddings,
            "hidden": hidden,
            "output": _linear_specs(width, self.num_outputs, 0.02, is_hidden=False),
            "linear": {"weight": ArraySpec(shape, (None, None), initializers.zeros, decay=True)},
        }

    def flops(self, rows: int) -> int:
        """Forward and backward: 6 for each weight of a product."""
        width, dim = self.section.width, self.section.embed_dim
        embedding = len(self.numeric) * self.bins.most * dim
        hidden = self.width_in * width + (self.section.num_layers - 1) * width**2
        return 6 * rows * (embedding + hidden + (width + self.linear_width) * self.num_outputs)

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        """Features `[rows, width + linear_width]` of "inputs" float32 `[rows, columns]`."""
        inputs, dtype = batch["inputs"], params["output"]["weight"].dtype
        parts: list[jax.Array] = []
        linear: list[jax.Array] = []
        if len(self.numeric):
            values = inputs[:, self.numeric]
            missing = jnp.isnan(values)
            values = jnp.clip(jnp.where(missing, 0.0, values), -NUMBER_LIMIT, NUMBER_LIMIT)
            parts.append(self._numbers(params["numbers"], values, missing, dtype))
            linear += [values.astype(dtype), missing.astype(dtype)]
        if len(self.categorical):
            numbers = inputs[:, self.categorical].astype(jnp.int32) + self.offsets
            parts.append(params["categories"][numbers].reshape(len(inputs), -1))
            linear.append(parts[-1])
        x = jnp.concatenate(parts, axis=1)
        for i in range(self.section.num_layers):
            layer = params["hidden"][str(i)]
            x = jax.nn.relu(layers.linear(x, layer["weight"], layer["bias"]))
            x = layers.dropout(x, self.section.dropout, ctx, i)
        return jnp.concatenate([PERCEPTRON_SCALE * x, *(self.linear_scale * part for part in linear)], axis=1)

    def _numbers(self, params: Params, values: jax.Array, missing: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Embeddings `[rows, columns x embed_dim]` of numbers `[rows, columns]`, 0 where one is missing."""
        encoded = self.bins.encode(values).astype(dtype)
        y = jnp.einsum("rcb,cbd->rcd", encoded, params["weight"]) + params["bias"]
        y = jax.nn.relu(y + missing[..., None] * params["missing"])
        return y.reshape(len(values), -1)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        weight = jnp.concatenate([params["output"]["weight"], params["linear"]["weight"]])
        return Head(weight, params["output"]["bias"])


class Bins:
    """The bins of numeric columns as arrays `[columns, bins]`; a column with fewer bins than another ends with empty
    ones, which encode as 0."""

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        counts = [len(column) - 1 for column in edges]
        self.most = max([1, *counts])
        shape = (len(edges), self.most)
        self.start, self.width = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        self.low, self.high = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for i, (column, count) in enumerate(zip(edges, counts, strict=True)):
            self.start[i, :count] = column[:-1]
            self.width[i, :count] = np.diff(column)
            self.high[i, :count] = 1
            self.low[i, :1], self.high[i, count - 1 : count] = (-np.inf, np.inf) if count else (0, 0)

    def encode(self, values: jax.Array) -> jax.Array:
        """Piecewise linear encoding `[rows, columns, bins]` of `[rows, columns]`.

        1 for a bin below the value, 0 for one above it, and in between the share of the bin that is below the value.
        The first and the last bin go on beyond their edges.
        """
        return jnp.clip((values[..., None] - self.start) / self.width, self.low, self.high)


def make(section: TabularSection, data: DataSpec) -> Tabular:
    """The network for a table: one output per class, or one per number. Raises ValueError for data without columns."""
    if not data.columns:
        raise ValueError("the DataSpec describes no columns")
    return Tabular(section, data.columns, num_outputs=len(data.classes) or data.target_size)


def _linear_specs(inputs: int, outputs: int, stddev: float, *, is_hidden: bool = True) -> Specs:
    axes = ("embed", "mlp") if is_hidden else ("embed", None)
    matrix = ((0,), (1,)) if is_hidden else None
    return {
        "weight": ArraySpec((inputs, outputs), axes, initializers.normal(stddev), matrix=matrix, decay=True),
        "bias": ArraySpec((outputs,), axes[1:], initializers.zeros),
    }
