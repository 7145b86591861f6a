"""Attention as it is defined, scores and all: what every other implementation is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.mask import SegmentIds
from jax_kernels.implementations import Config


def attention(
    call: Call,
    config: Config,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_offset: jax.Array | None,
    segment_ids: SegmentIds | None,
) -> tuple[jax.Array, jax.Array]:
    """Out as q `[batch, q_len, num_heads, head_dim]`, log-sum-exp `[batch, num_heads, q_len]` float32 or wider."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    keys, values = (jnp.repeat(x.astype(wide), call.group, axis=2) for x in (k, v))
    scores = call.scale * jnp.einsum("bqhd,bkhd->bhqk", q.astype(wide), keys)
    if call.logit_softcap is not None:
        scores = call.logit_softcap * jnp.tanh(scores / call.logit_softcap)
    seen = call.mask(q_offset, segment_ids).block(0, q.shape[1], 0, k.shape[1])
    if seen is not None:
        scores = jnp.where(seen, scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1)
    safe = jnp.where(jnp.isneginf(lse), 0.0, lse)
    out = jnp.einsum("bhqk,bkhd->bqhd", jnp.exp(scores - safe[..., None]), values)
    return out.astype(q.dtype), lse
