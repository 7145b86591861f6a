"""Attention as it is defined, scores and all: what every other form is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_kernels.attention.mask import Mask


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, scale: float, logit_softcap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Out as q `[batch, q_len, num_heads, head_dim]`, log-sum-exp `[batch, num_heads, q_len]` float32 or wider."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    repeats = q.shape[2] // k.shape[2]
    keys, values = (jnp.repeat(x.astype(wide), repeats, axis=2) for x in (k, v))
    scores = scale * jnp.einsum("bqhd,bkhd->bhqk", q.astype(wide), keys)
    if logit_softcap is not None:
        scores = logit_softcap * jnp.tanh(scores / logit_softcap)
    seen = mask.block(0, q.shape[1], 0, k.shape[1])
    if seen is not None:
        scores = jnp.where(seen, scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1)
    safe = jnp.where(jnp.isneginf(lse), 0.0, lse)
    out = jnp.einsum("bhqk,bkhd->bqhd", jnp.exp(scores - safe[..., None]), values)
    return out.astype(q.dtype), lse
