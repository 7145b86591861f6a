"""Projection and loss by chunks of tokens, in plain XLA: the logits of one chunk at a time are all that is ever held.

Where each token's loss is returned, the way back forms a chunk's logits anew, since what will be asked of them is not
known before: four products for three. Their sum asks the same of every token, so that its gradients are formed on
the way forward, from logits that are there anyway, and the way back only scales them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels.forms import Config
from jax_kernels.linear_cross_entropy.call import Call, counts, losses

CHUNK_TOKENS = 256
"""Rows of a product that keep a processor busy; their logits over 50,257 tokens take 51 MB."""

CHUNK_LOGITS = 1 << 23
"""A chunk has more rows where the vocabulary is small: logits of so many take 32 MB."""


def linear_cross_entropy(call: Call, config: Config, x: jax.Array, weight: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of each token `[tokens]`, float32 or wider, or their sum."""
    return _sum(call, x, weight, labels) if call.reduction == "sum" else _each(call, x, weight, labels)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _each(call: Call, x: jax.Array, weight: jax.Array, labels: jax.Array) -> jax.Array:
    return _forward_each(call, x, weight, labels)[0]


def _forward_each(call: Call, x: jax.Array, weight: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    def chunk(_: None, rows: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        x, labels = rows
        return None, losses(call, _logits(call, x, weight)[0], labels)

    _, (loss, lse) = lax.scan(chunk, None, (_chunks(call, x), _chunks(call, labels)))
    loss, lse = (y.reshape(-1)[: call.tokens] for y in (loss, lse))
    return loss, (x, weight, labels, lse)


def _backward_each(call: Call, residuals: Any, d_loss: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, weight, labels, lse = residuals

    def chunk(d_weight: jax.Array, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, labels, lse, d_loss = rows
        logits, slope = _logits(call, x, weight)
        return _accumulate(d_weight, x, weight, _d_logits(call, logits, slope, labels, lse, d_loss))

    rows = tuple(_chunks(call, y) for y in (x, labels, lse, d_loss))
    d_weight, d_x = lax.scan(chunk, jnp.zeros(weight.shape, lse.dtype), rows)
    return _rows(call, d_x).astype(x.dtype), d_weight.astype(weight.dtype), None


_each.defvjp(_forward_each, _backward_each)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(call: Call, x: jax.Array, weight: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(_each(call, x, weight, labels))


def _forward_sum(call: Call, x: jax.Array, weight: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def chunk(carry: tuple[jax.Array, jax.Array], rows: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        total, d_weight = carry
        x, labels, d_loss = rows
        logits, slope = _logits(call, x, weight)
        loss, lse = losses(call, logits, labels)
        d_weight, d_x = _accumulate(d_weight, x, weight, _d_logits(call, logits, slope, labels, lse, d_loss))
        return (total + jnp.sum(jnp.where(d_loss > 0.0, loss, 0.0)), d_weight), d_x

    # Rows that fill up the last chunk ask for nothing.
    rows = (_chunks(call, x), _chunks(call, labels), _chunks(call, jnp.ones(labels.shape, wide)))
    start = (jnp.zeros((), wide), jnp.zeros(weight.shape, wide))
    (total, d_weight), d_x = lax.scan(chunk, start, rows)
    # A sum over many tokens may be more than float16 holds.
    kept = wide if x.dtype == jnp.float16 else x.dtype
    return total, (_rows(call, d_x).astype(kept), d_weight.astype(kept))


def _backward_sum(call: Call, residuals: Any, d_loss: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    d_x, d_weight = residuals
    return (d_x * d_loss).astype(call.dtype), (d_weight * d_loss).astype(call.dtype), None


_sum.defvjp(_forward_sum, _backward_sum)


def _chunks(call: Call, y: jax.Array) -> jax.Array:
    """`[tokens, ...]` as `[chunks, tokens of a chunk, ...]`, the last one filled up with zeros."""
    tokens = y.shape[0]
    size = min(max(CHUNK_TOKENS, CHUNK_LOGITS // call.vocab), max(tokens, 1))
    count = -(-tokens // size)
    filled = jnp.pad(y, ((0, count * size - tokens),) + ((0, 0),) * (y.ndim - 1))
    return filled.reshape(count, size, *y.shape[1:])


def _rows(call: Call, chunks: jax.Array) -> jax.Array:
    return chunks.reshape(-1, chunks.shape[-1])[: call.tokens]


def _logits(call: Call, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Capped logits of a chunk `[tokens, vocab]`, and the slope of the soft-cap at each."""
    logits = jnp.dot(x, weight, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
    if call.logit_softcap is None:
        return logits, None
    capped = jnp.tanh(logits / call.logit_softcap)
    return call.logit_softcap * capped, 1.0 - jnp.square(capped)


def _d_logits(
    call: Call,
    logits: jax.Array,
    slope: jax.Array | None,
    labels: jax.Array,
    lse: jax.Array,
    d_loss: jax.Array,
) -> jax.Array:
    """The gradient of a chunk's logits: the softmax, less what was expected, each row as much as is asked of it."""
    asked = jnp.where(counts(call, labels), d_loss, 0.0)[:, None]
    total = 1.0 + 2.0 * call.z_loss * lse[:, None] if call.z_loss else 1.0
    d_logits = asked * total * jnp.exp(logits - lse[:, None])
    if call.label_smoothing:
        d_logits -= asked * (call.label_smoothing / call.vocab)
    hit = labels[:, None] == lax.broadcasted_iota(labels.dtype, logits.shape, 1)
    d_logits -= jnp.where(hit, (1.0 - call.label_smoothing) * asked, 0.0)
    return d_logits if slope is None else d_logits * slope


def _accumulate(
    d_weight: jax.Array, x: jax.Array, weight: jax.Array, d_logits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    d_logits = d_logits.astype(x.dtype)
    d_x = jnp.dot(d_logits, weight.T, preferred_element_type=d_weight.dtype)
    return d_weight + jnp.dot(x.T, d_logits, preferred_element_type=d_weight.dtype), d_x
