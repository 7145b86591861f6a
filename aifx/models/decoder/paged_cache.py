"""The keys and values of what was read so far, in pages: rows of a batch have lengths of their own, and grow.

A cache is `{"page_table", "lengths", "layers"}`: the pages of each row in order `[batch, pages_per_row]`, the number of
tokens that each row holds `[batch]`, and by layer the pages of all rows.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aifx.nn import initializers
from aifx.specs import ArraySpec, Params, Specs
from jax_kernels._ops.decode_attention import write_pages

Cache: TypeAlias = dict[str, Any]

PAGE_SIZE = 64
"""Tokens of a page."""


def table_specs(batch: int, length: int) -> Specs:
    """Which pages a row has, for `length` tokens of each row: as many for all of them, each row's in a stretch."""
    shape = (batch, -(-length // PAGE_SIZE))
    return {
        "page_table": ArraySpec(shape, ("batch", None), _numbered, jnp.int32, kind="buffer"),
        "lengths": ArraySpec((batch,), ("batch",), initializers.zeros, jnp.int32, kind="buffer"),
    }


def layer_specs(batch: int, length: int, num_kv_heads: int, head_dim: int, dtype: DTypeLike) -> Specs:
    """The pages of one layer, `[num_kv_heads, num_pages, page_size, head_dim]`."""
    shape = (num_kv_heads, batch * -(-length // PAGE_SIZE), PAGE_SIZE, head_dim)
    pages = ArraySpec(shape, ("kv_heads", None, None, "head_dim"), initializers.zeros, dtype, kind="buffer")
    return {"key": pages, "value": pages}


def write(layer: Params, page_table: jax.Array, start: jax.Array, k: jax.Array, v: jax.Array) -> Params:
    """The layer's pages with k and v `[batch, seq, num_kv_heads, head_dim]` from each row's position `start` on."""
    new = {"key": k, "value": v}
    return {name: write_pages(pages, page_table, start, new[name].astype(pages.dtype)) for name, pages in layer.items()}


def _numbered(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return jnp.arange(shape[0] * shape[1], dtype=dtype).reshape(shape)
