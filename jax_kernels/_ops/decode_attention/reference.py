"""Attention over pages as it is defined, on rows put together first: what every other implementation is compared with.

Its gradient is that of the other implementations too. Generation needs none, so that none is written for speed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jax_kernels._ops.decode_attention.call import Call
from jax_kernels._ops.decode_attention.pages import gather_pages
from jax_kernels.implementations import Config

Pair: TypeAlias = tuple[jax.Array, jax.Array]


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
    wide = jnp.promote_types(q.dtype, jnp.float32)
    start, stop = call.keys_seen(lengths[:, None])
    position = jnp.arange(call.capacity)
    seen = (position >= start) & (position < stop)

    def rows(pages: jax.Array) -> jax.Array:
        # What is not seen may be NaN, and 0 * NaN is NaN.
        held = jnp.where(seen[:, :, None, None], gather_pages(pages, page_table), 0)
        return jnp.repeat(held.astype(wide), call.group, axis=2)

    scores = call.scale * jnp.einsum("bhd,bkhd->bhk", q.astype(wide), rows(k_pages))
    if call.logit_softcap is not None:
        scores = call.logit_softcap * jnp.tanh(scores / call.logit_softcap)
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1)
    safe = jnp.where(jnp.isneginf(lse), 0.0, lse)
    out = jnp.einsum("bhk,bkhd->bhd", jnp.exp(scores - safe[..., None]), rows(v_pages))
    return out.astype(q.dtype), lse


def with_gradient(implementation: Callable[..., Pair]) -> Callable[..., Pair]:
    """An implementation `(call, config, q, k_pages, v_pages, page_table, lengths)`, with the reference's gradient."""

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def differentiable(call: Call, config: Config, *operands: jax.Array) -> Pair:
        return implementation(call, config, *operands)

    def forward(call: Call, config: Config, *operands: jax.Array) -> tuple[Pair, Any]:
        return implementation(call, config, *operands), operands

    def backward(call: Call, config: Config, operands: Any, cotangents: Pair) -> tuple[Any, ...]:
        q, k_pages, v_pages, *where = operands
        _, pull = jax.vjp(lambda q, k, v: decode_attention(call, config, q, k, v, *where), q, k_pages, v_pages)
        return *pull(cotangents), None, None

    differentiable.defvjp(forward, backward)
    return differentiable
