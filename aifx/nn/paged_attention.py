"""Attention of several new tokens over a cache in pages, which holds them already: a part of a prompt at a time."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels.implementations import current_device

PIECE = 256
"""Keys of a row that are read at once on a CPU. Elsewhere a turn of a loop costs more than the work that it saves."""


def attend_pages(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    start: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    logit_softcap: float | None = None,
) -> jax.Array:
    """Causal attention of q `[batch, seq, heads, head_dim]` over the pages of each row, as q.

    Query i of row b is at position start[b] + i and sees keys at positions up to its own, of which it sees the last
    `window`. The work grows with what the longest row holds, not with what its table could. A row's result depends on
    that row alone, bit by bit.

    Args:
        k_pages: `[kv_heads, num_pages, page_size, head_dim]`, as v_pages.
        page_table: `[batch, pages_per_row]`; an entry that names no page gives what the nearest one holds.
        start: `[batch]` integers.
    """
    batch, seq, heads, head_dim = q.shape
    kv_heads, _, page_size, _ = k_pages.shape
    group = heads // kv_heads
    capacity = page_table.shape[1] * page_size
    pages = page_table.shape[1] if current_device().platform != "cpu" else max(PIECE // page_size, 1)
    table = jnp.pad(page_table, ((0, 0), (0, -page_table.shape[1] % pages)))
    size = pages * page_size
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # [kv_heads, batch, seq * group, head_dim]: all queries that share a head of keys are the rows of one product.
    grouped = q.reshape(batch, seq, kv_heads, group, head_dim).transpose(2, 0, 1, 3, 4)
    grouped = grouped.reshape(kv_heads, batch, seq * group, head_dim)
    position = jnp.repeat(start[:, None] + jnp.arange(seq), group, axis=1)  # of each row of the products

    def step(piece: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, weighted = carry
        here = lax.dynamic_slice_in_dim(table, piece * pages, pages, axis=1)
        keys, values = (_take(x, here) for x in (k_pages, v_pages))
        key_position = piece * size + jnp.arange(size)
        seen = key_position <= position[..., None]
        if window is not None:
            seen &= key_position > position[..., None] - window
        scores = scale * jnp.einsum("hbqd,hbkd->hbqk", grouped, keys, preferred_element_type=wide)
        if logit_softcap is not None:
            scores = logit_softcap * jnp.tanh(scores / logit_softcap)
        scores = jnp.where(seen, scores, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        base = jnp.where(jnp.isneginf(new_top), 0.0, new_top)  # where nothing was seen yet
        p, decay = jnp.exp(scores - base), jnp.exp(top - base)
        is_held = (key_position <= position[:, -1:])[..., None]  # what lies beyond may be NaN, and 0 * NaN is NaN
        values = jnp.where(is_held, values, 0)
        product = jnp.einsum("hbqk,hbkd->hbqd", p.astype(values.dtype), values, preferred_element_type=wide)
        return new_top, decay * total + jnp.sum(p, axis=-1, keepdims=True), decay * weighted + product

    none = jnp.zeros_like(grouped[..., :1], wide)
    carry = (none - jnp.inf, none, jnp.zeros_like(grouped, wide))
    if size >= capacity:
        _, total, weighted = step(jnp.zeros((), jnp.int32), carry)
    else:
        reach = jnp.minimum(jnp.max(start) + seq, capacity)
        first = jnp.int32(0) if window is None else jnp.maximum(jnp.min(start) - window + 1, 0) // size
        _, total, weighted = lax.fori_loop(first, (reach + size - 1) // size, step, carry)
    out = (weighted / jnp.where(total == 0.0, 1.0, total)).reshape(kv_heads, batch, seq, group, head_dim)
    return out.transpose(1, 2, 0, 3, 4).reshape(q.shape).astype(q.dtype)


def _take(pages: jax.Array, table: jax.Array) -> jax.Array:
    """The pages that a piece of each row's table names, end to end: `[kv_heads, batch, keys, head_dim]`."""
    taken = jnp.take(pages, table, axis=1, mode="clip")
    return taken.reshape(pages.shape[0], len(table), -1, pages.shape[-1])
