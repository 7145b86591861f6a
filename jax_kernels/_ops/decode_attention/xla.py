"""Attention over pages in plain XLA: rows are walked in pieces of a few pages, of which only those in use are read.

A piece is gathered and used at once, while it is in a CPU's cache: of all rows together, as far as the longest one
reaches. What a shorter row does not see changes no bit of its result. On accelerators, where a turn of a loop costs
more than the work that it saves, a piece is a whole row.

On a CPU, XLA sums the products of a single query by head in an order that depends on the number of rows (2 x 1 x 128:
none of 2, 4, 8 and 12 rows has the bits of 16). Such rows go in blocks of eight, each with the bits of eight alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels._ops.decode_attention.call import Call
from jax_kernels._ops.decode_attention.reference import Pair, with_gradient
from jax_kernels.implementations import Config, Device, current_device

BLOCK = 8


def configs(call: Call, device: Device) -> Sequence[Config]:
    """`piece` is the number of keys of a row that are taken at once."""
    if device.platform != "cpu":
        return ((("piece", call.capacity),),)
    return tuple((("piece", piece),) for piece in ((256, 128, 512) if call.batch == 1 else (128, 64, 256)))


@with_gradient
def decode_attention(
    call: Call,
    config: Config,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
) -> Pair:
    """Out as q `[batch, num_heads, head_dim]`, log-sum-exp `[batch, num_heads]` float32 or wider."""
    blocks, rest = divmod(call.batch, BLOCK)
    if call.group == 1 and blocks > 1 and not rest and current_device().platform == "cpu":
        split = (x.reshape(blocks, BLOCK, *x.shape[1:]) for x in (q, page_table, lengths))
        one = replace(call, batch=BLOCK)
        found = lax.map(lambda part: _attend(one, config, part[0], k_pages, v_pages, *part[1:]), tuple(split))
        return found[0].reshape(q.shape), found[1].reshape(call.batch, call.num_heads)
    return _attend(call, config, q, k_pages, v_pages, page_table, lengths)


def _attend(
    call: Call,
    config: Config,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
) -> Pair:
    """Attention of all rows together."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    pages = min(max(dict(config).get("piece", call.capacity) // call.page_size, 1), call.pages_per_row)
    table = jnp.pad(page_table, ((0, 0), (0, -call.pages_per_row % pages)))
    size = pages * call.page_size
    grouped = q.reshape(call.batch, call.num_kv_heads, call.group, call.head_dim).swapaxes(0, 1)
    start, stop = (jnp.broadcast_to(jnp.asarray(x, jnp.int32), lengths.shape) for x in call.keys_seen(lengths))

    def step(piece: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, weighted = carry
        here = lax.dynamic_slice_in_dim(table, piece * pages, pages, axis=1)
        keys, values = (_take(x, here) for x in (k_pages, v_pages))
        position = piece * size + jnp.arange(size)
        seen = (position >= start[:, None]) & (position < stop[:, None])
        scores = call.scale * jnp.einsum("hbgd,hbkd->hbgk", grouped, keys, preferred_element_type=wide)
        if call.logit_softcap is not None:
            scores = call.logit_softcap * jnp.tanh(scores / call.logit_softcap)
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        base = jnp.where(jnp.isneginf(new_top), 0.0, new_top)  # where nothing was seen yet
        p, decay = jnp.exp(scores - base), jnp.exp(top - base)
        values = jnp.where(seen[..., None], values, 0)  # what is not seen may be NaN, and 0 * NaN is NaN
        weighted = decay * weighted + jnp.einsum(
            "hbgk,hbkd->hbgd", p.astype(values.dtype), values, preferred_element_type=wide
        )
        return new_top, decay * total + jnp.sum(p, axis=-1, keepdims=True), weighted

    none = jnp.zeros_like(grouped[..., :1], wide)
    carry = (none - jnp.inf, none, jnp.zeros_like(grouped, wide))
    if size >= call.capacity:
        top, total, weighted = step(0, carry)
    else:
        bounds = jnp.min(start) // size, (jnp.max(stop) + size - 1) // size
        top, total, weighted = lax.fori_loop(*bounds, step, carry)
    out = (weighted / jnp.where(total == 0.0, 1.0, total)).swapaxes(0, 1)
    lse = (top + jnp.log(total))[..., 0].swapaxes(0, 1)
    return out.astype(q.dtype).reshape(q.shape), lse.reshape(call.batch, call.num_heads)


def _take(pages: jax.Array, table: jax.Array) -> jax.Array:
    """The pages that a piece of each row's table names, end to end: `[num_kv_heads, batch, keys, head_dim]`."""
    taken = jnp.take(pages, table, axis=1, mode="clip")
    return taken.reshape(pages.shape[0], len(table), -1, pages.shape[-1])
