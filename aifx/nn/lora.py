"""A frozen matrix with a low-rank correction that is trained (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from aifx.nn.quantized import Int8Table, QuantizedMatrix, concat_outputs

Drop = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoraMatrix:
    """`x @ base + scale * dropout(x) @ a @ b`.

    Attributes:
        base: `[..., inputs, outputs]`, or a quantized matrix or table.
        a: `[..., inputs, rank]`.
        b: `[..., rank, outputs]`.
        scale: alpha / rank.
        dropout: share of x that is dropped before `a` in training.
        input_axes: the mesh axes over which the inputs are sharded.
        drop: the dropout of this layer and step; None outside training.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: float = field(metadata={"static": True})
    dropout: float = field(default=0.0, metadata={"static": True})
    input_axes: tuple[str, ...] = field(default=(), metadata={"static": True})
    drop: Drop | None = field(default=None, metadata={"static": True})

    def as_matrix(self, inputs: int) -> LoraMatrix:
        """With `[inputs, outputs]`, `[inputs, rank]` and `[rank, outputs]`."""
        rank = self.b.shape[0]
        return replace(self, a=self.a.reshape(inputs, rank), b=self.b.reshape(rank, -1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoraBank:
    """A matrix with the corrections of several adapters, of which each row has one or none: for serving.

    `x @ base + (x @ a, but for the columns of other adapters) @ b`: one product for all adapters, since gathering each
    row's own matrices takes longer.

    Attributes:
        base: `[..., inputs, outputs]`, or a quantized matrix.
        a: `[..., inputs, columns]`; column j belongs to adapter j // rank % count.
        b: `[..., columns, outputs]`, with the adapters' scales in it.
        adapters: int32 `[rows]`, the adapter of each row; -1 for none. Unset until a program knows it.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    count: int = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})
    adapters: jax.Array | None = None

    def own_columns(self, x: jax.Array) -> jax.Array:
        """`[rows, columns]` with zeros in the columns of other adapters."""
        assert self.adapters is not None
        owner = jnp.arange(x.shape[1]) // self.rank % self.count
        return jnp.where(owner == self.adapters[:, None], x, 0)


def choose_adapters(params: Any, adapters: jax.Array) -> Any:
    """Params with `adapters` `[rows]` in each bank."""

    def chosen(node: Any) -> Any:
        if not isinstance(node, LoraBank):
            return node
        layers = node.a.shape[:-2]  # of a stack, over which a loop runs
        return replace(node, adapters=jnp.broadcast_to(adapters, (*layers, *adapters.shape)))

    return jax.tree.map(chosen, params, is_leaf=lambda node: isinstance(node, LoraBank))


def join_outputs(*weights: Any) -> Any:
    """Join matrices that have the same inputs, of which some may be banks: one with the outputs of all."""
    banks = [weight for weight in weights if isinstance(weight, LoraBank)]
    if not banks:
        return concat_outputs(*weights)
    base = concat_outputs(*(weight.base if isinstance(weight, LoraBank) else weight for weight in weights))
    outputs = [_num_outputs(weight.base if isinstance(weight, LoraBank) else weight) for weight in weights]
    rows = []
    for index, weight in enumerate(weights):
        if isinstance(weight, LoraBank):
            before, after = sum(outputs[:index]), sum(outputs[index + 1 :])
            rows.append(jnp.pad(weight.b, [(0, 0)] * (weight.b.ndim - 1) + [(before, after)]))
    a = jnp.concatenate([bank.a for bank in banks], axis=-1)
    return replace(banks[0], base=base, a=a, b=jnp.concatenate(rows, axis=-2))


def _num_outputs(weight: Any) -> int:
    if isinstance(weight, Int8Table):
        return int(weight.values.shape[-2])
    return int((weight.values if isinstance(weight, QuantizedMatrix) else weight).shape[-1])


def map_outputs(of: Callable[[jax.Array], jax.Array], weight: Any) -> Any:
    """`weight` with `of` applied to each of its arrays, whose last dimensions are the outputs."""
    if isinstance(weight, LoraMatrix):
        return replace(weight, base=map_outputs(of, weight.base), b=of(weight.b))
    if isinstance(weight, QuantizedMatrix):
        return weight._replace(values=of(weight.values), scale=of(weight.scale))
    if isinstance(weight, Int8Table):  # whose last dimension is that of the inputs
        values = jnp.moveaxis(of(jnp.moveaxis(weight.values, -1, 0)), 0, -1)
        return Int8Table(values, of(weight.scale))
    return of(weight)
