"""The protocols of models: pure functions over array specs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from aifx.nn.layers import linear_at_least_float32
from aifx.nn.quantized import Int8Table
from aifx.parallel.context import ForwardContext
from aifx.specs import Params, Specs
from jax_kernels.products import is_bfloat16_on_cpu


@dataclass(frozen=True)
class Head:
    """The last projection of a model.

    With tied embeddings (Press and Wolf 2017, arXiv 1608.05859), the table `[vocab, embed]` of the tokens is also this
    projection, and its gradient is the sum of both uses. The head then also has the table as stored: a product
    with it can be cheaper than one with its transpose.
    """

    weight: jax.Array  # [embed, outputs]: what losses multiply by
    bias: jax.Array | None = None  # [outputs]
    logit_softcap: float | None = None  # outputs are squashed to within plus or minus this by a tanh
    axes: tuple[str, ...] = ()  # mesh axes over which the outputs are divided: this device has a part of the weight
    table: jax.Array | Int8Table | None = None  # the weight as [outputs, embed], if it is stored so

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Outputs `[rows, outputs]`, float32 or wider, of `hidden` `[rows, embed]`."""
        if isinstance(self.table, Int8Table):
            y = linear_at_least_float32(hidden, self.table)
        elif self.table is None or is_bfloat16_on_cpu(self.table):
            y = linear_at_least_float32(hidden, self.weight)
        else:  # on Intel's processors, XLA would copy the transposed table for the product `hidden @ table.T`
            y = linear_at_least_float32(self.table, hidden.T).T
        if self.bias is not None:
            y = y + self.bias
        return y if self.logit_softcap is None else self.logit_softcap * jnp.tanh(y / self.logit_softcap)


@runtime_checkable
class Model(Protocol):
    """A model, independent of losses and data. Its functions run inside jit and take `merge_frozen(params, frozen)`.

    Every model derives from it, or from `Decodes`.

    Attributes:
        gathers: nodes of the parameters that it gathers itself: a device passes these in parts, the others whole.
        divides: logical axes that devices can divide.
        adapts: groups of matrices that can have adapters: it multiplies by them with `layers.linear` alone.
    """

    gathers: tuple[str, ...] = ()
    divides: tuple[str, ...] = ()
    adapts: tuple[str, ...] = ()

    def specs(self) -> Specs: ...

    def hidden(self, params: Params, batch: Any, ctx: ForwardContext) -> jax.Array:
        """The head's input `[tokens or rows, embed]` for a batch with the fields that the model's DataSpec names."""
        ...

    def head(self, params: Params, ctx: ForwardContext) -> Head: ...

    def flops(self, rows: int) -> int:
        """Floating-point operations of a forward and backward pass over so many rows (docs/models.md)."""
        ...


@runtime_checkable
class Decodes(Model, Protocol):
    """A model that writes token by token, with a cache of what it has read: rows share its pages.

    Its cache has "page_table" `[batch, pages_per_row]`, "lengths" `[batch]`, and beside these the pages, whose number
    follows from `cache_specs(1, length)`. Rows may name the same page; an entry of the table below 0 names none.

    Attributes:
        page_size: tokens of a page.
        num_kv_heads: heads of keys and values, which devices along `tensor` divide; None if it has none.
    """

    vocab_size: int
    max_seq_len: int
    page_size: int
    num_kv_heads: int | None = None

    def for_decoding(self, params: Params) -> Params:
        """The params as these functions read them fastest, on one device."""
        return params

    def cache_specs(self, batch: int, length: int, dtype: Any = jnp.float32) -> Specs:
        """An empty cache for `length` tokens of each of `batch` rows."""
        ...

    def extend(self, params: Params, inputs: jax.Array, cache: Any, ctx: ForwardContext) -> tuple[jax.Array, Any]:
        """`[batch, seq, embed]` of more tokens of each row, `inputs` `[batch, seq]`, and the cache with them."""
        ...

    def decode(self, params: Params, tokens: jax.Array, cache: Any, ctx: ForwardContext) -> tuple[jax.Array, Any]:
        """`[batch, embed]` of the token that follows each row, `tokens` `[batch]`, and the cache with it."""
        ...
