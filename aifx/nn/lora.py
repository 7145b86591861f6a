"""A frozen matrix with a low-rank correction that is trained (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from aifx.nn.quantized import QuantizedMatrix

Drop = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoraMatrix:
    """`x @ base + scale * dropout(x) @ a @ b`.

    Attributes:
        base: `[..., inputs, outputs]`, or a quantized matrix.
        a: `[..., inputs, rank]`.
        b: `[..., rank, outputs]`.
        scale: alpha / rank.
        dropout: share of x that is dropped before `a` in training.
        divided: the mesh axes over which devices divide the inputs.
        drop: the dropout of this layer and step; None outside training.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: float = field(metadata={"static": True})
    dropout: float = field(default=0.0, metadata={"static": True})
    divided: tuple[str, ...] = field(default=(), metadata={"static": True})
    drop: Drop | None = field(default=None, metadata={"static": True})

    def as_matrix(self, inputs: int) -> LoraMatrix:
        """With `[inputs, outputs]`, `[inputs, rank]` and `[rank, outputs]`."""
        rank = self.b.shape[0]
        return replace(self, a=self.a.reshape(inputs, rank), b=self.b.reshape(rank, -1))


def map_outputs(of: Callable[[jax.Array], jax.Array], weight: Any) -> Any:
    """`weight` with `of` applied to each of its arrays whose last dimensions are the outputs."""
    if isinstance(weight, LoraMatrix):
        return replace(weight, base=map_outputs(of, weight.base), b=of(weight.b))
    if isinstance(weight, QuantizedMatrix):
        return weight._replace(values=of(weight.values), scale=of(weight.scale))
    return of(weight)
