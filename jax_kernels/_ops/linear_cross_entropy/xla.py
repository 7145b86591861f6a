"""Projection and loss by chunks of tokens, in plain XLA: the logits of one chunk at a time are all that is ever held.

Where each token's loss is returned, the way back forms a chunk's logits anew, since what will be asked of them is not
known before: four products for three. Their sum asks the same of every token, so that its gradients are formed on
the way forward, from logits that are there anyway, and the way back only scales them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_kernels._ops.linear_cross_entropy.call import Call, counts, inside, loss_of, losses
from jax_kernels.implementations import Config, Device
from jax_kernels.products import product

Arrays: TypeAlias = tuple[Array, ...]

CHUNK_TOKENS = {"cpu": 512, "gpu": 2048, "tpu": 2048}
"""The gradient of the weight is read and written once a chunk. On a CPU the logits of 512 tokens over 50,257 take
103 MB, a quarter of the reference's at 2,048 tokens; an accelerator multiplies faster than its memory is, by far."""

CHUNK_LOGITS = 1 << 23
"""A chunk has more rows where the vocabulary is small: logits of so many take 32 MB."""


def configs(call: Call, device: Device) -> Sequence[Config]:
    guess = _fit(call, CHUNK_TOKENS[device.platform])
    # Fewer chunks than four would hold what the op is there not to hold, and win where memory is not counted.
    sizes = (_fit(call, size) for size in (256, 512, 1024, 2048, 4096) if size * 4 <= call.tokens)
    return [(("chunk_tokens", size),) for size in dict.fromkeys((guess, *sizes))]


def _fit(call: Call, size: int) -> int:
    """Tokens of a chunk: about so many or more, with few rows of zeros to fill up the last."""
    count = -(-call.tokens // max(size, CHUNK_LOGITS // call.vocab))
    return max(1, -(-call.tokens // max(count, 1)))


def linear_cross_entropy(call: Call, config: Config, x: Array, weight: Array, labels: Array) -> Array:
    """The loss of each token `[tokens]`, float32 or wider, or their sum."""
    size = dict(config).get("chunk_tokens", _fit(call, CHUNK_TOKENS["cpu"]))
    implementation = _sum if call.reduction == "sum" else _each
    return implementation(call, size, x, weight, labels)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _each(call: Call, size: int, x: Array, weight: Array, labels: Array) -> Array:
    return _forward_each(call, size, x, weight, labels)[0]


def _forward_each(call: Call, size: int, x: Array, weight: Array, labels: Array) -> tuple[Array, Any]:
    def chunk(rows: Arrays) -> Arrays:
        x, labels = rows
        return losses(call, _logits(call, x, weight)[0], labels)

    loss, lse = (y.reshape(-1)[: call.tokens] for y in lax.map(chunk, _chunks(size, x, labels)))
    return loss, (x, weight, labels, lse)


def _backward_each(call: Call, size: int, residuals: Any, d_loss: Array) -> tuple[Array, Array, None]:
    x, weight, labels, lse = residuals

    def chunk(rows: Arrays) -> tuple[Array, Array]:
        x, labels, lse, d_loss = rows
        logits, slope = _logits(call, x, weight)
        weights = jnp.exp(logits - lse[:, None])
        return _gradients(x, weight, _d_logits(call, weights, jnp.ones_like(lse), lse, slope, labels, d_loss))

    d_weight, d_x = _over_chunks(chunk, _chunks(size, x, labels, lse, d_loss))
    return d_x[: call.tokens].astype(x.dtype), d_weight.astype(weight.dtype), None


_each.defvjp(_forward_each, _backward_each)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(call: Call, size: int, x: Array, weight: Array, labels: Array) -> Array:
    return jnp.sum(_each(call, size, x, weight, labels))


def _forward_sum(call: Call, size: int, x: Array, weight: Array, labels: Array) -> tuple[Array, Any]:
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def chunk(rows: Arrays) -> tuple[tuple[Array, Array], Array]:
        x, labels, asked = rows
        logits, slope = _logits(call, x, weight)
        # As in `losses`, but what takes the longest, the exponentials, serves the gradients too.
        top = jnp.max(logits, axis=-1)
        weights = jnp.exp(logits - top[:, None])
        sums = jnp.sum(weights, axis=-1)
        lse = top + jnp.log(sums)
        label_logit = jnp.take_along_axis(logits, inside(call, labels)[:, None], axis=-1)[:, 0]
        loss = loss_of(call, labels, lse, label_logit, jnp.sum(logits, axis=-1) if call.label_smoothing else None)
        d_weight, d_x = _gradients(x, weight, _d_logits(call, weights, sums, lse, slope, labels, asked))
        return (d_weight, jnp.sum(jnp.where(asked > 0.0, loss, 0.0))), d_x

    # Rows that fill up the last chunk ask for nothing.
    (d_weight, total), d_x = _over_chunks(chunk, _chunks(size, x, labels, jnp.ones(labels.shape, wide)))
    # A sum over many tokens may be more than float16 holds.
    kept = wide if x.dtype == jnp.float16 else x.dtype
    return total, (d_x[: call.tokens].astype(kept), d_weight.astype(kept))


def _backward_sum(call: Call, size: int, residuals: Any, d_loss: Array) -> tuple[Array, Array, None]:
    d_x, d_weight = residuals
    return (d_x * d_loss).astype(call.dtype), (d_weight * d_loss).astype(call.dtype), None


_sum.defvjp(_forward_sum, _backward_sum)


def _chunks(size: int, *arrays: Array) -> Arrays:
    """Each `[tokens, ...]` as `[chunks, tokens of a chunk, ...]`, the last one filled up with zeros."""
    count = max(1, -(-arrays[0].shape[0] // size))
    filled = (jnp.pad(y, ((0, count * size - y.shape[0]),) + ((0, 0),) * (y.ndim - 1)) for y in arrays)
    return tuple(y.reshape(count, size, *y.shape[1:]) for y in filled)


def _over_chunks(chunk: Callable[[Arrays], tuple[Any, Array]], rows: Arrays) -> tuple[Any, Array]:
    """Over all chunks the sum of the first that `chunk` gives, and the second `[tokens, ...]`.

    The sum begins with the first chunk: zeros would be one more array to write and to read, as large as the weight.
    """
    total, first = chunk(tuple(y[0] for y in rows))

    def add(total: Any, rows: Arrays) -> tuple[Any, Array]:
        more, each = chunk(rows)
        return jax.tree.map(jnp.add, total, more), each

    total, rest = lax.scan(add, total, tuple(y[1:] for y in rows))
    return total, jnp.concatenate([first, rest.reshape(-1, *first.shape[1:])])


def _logits(call: Call, x: Array, weight: Array) -> tuple[Array, Array | None]:
    """Capped logits of a chunk `[tokens, vocab]`, and the slope of the soft-cap at each."""
    logits = _product(x, weight)
    if call.logit_softcap is None:
        return logits, None
    capped = jnp.tanh(logits / call.logit_softcap)
    return call.logit_softcap * capped, 1.0 - jnp.square(capped)


def _d_logits(
    call: Call, weights: Array, sums: Array, lse: Array, slope: Array | None, labels: Array, d_loss: Array
) -> Array:
    """The gradient of a chunk's logits: the softmax, which is `weights` over their `sums`, less what was expected, each
    row as much as is asked of it."""
    asked = jnp.where(counts(call, labels), d_loss, 0.0)[:, None]
    share = asked / sums[:, None]
    if call.z_loss:
        share *= 1.0 + 2.0 * call.z_loss * lse[:, None]
    d_logits = share * weights
    if call.label_smoothing:
        d_logits -= asked * (call.label_smoothing / call.vocab)
    hit = inside(call, labels)[:, None] == lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    d_logits -= jnp.where(hit, (1.0 - call.label_smoothing) * asked, 0.0)
    return d_logits if slope is None else d_logits * slope


def _gradients(x: Array, weight: Array, d_logits: Array) -> tuple[Array, Array]:
    """Gradients of the weight and of a chunk of x, from that of the chunk's logits."""
    d_logits = d_logits.astype(x.dtype)
    return _product(x.T, d_logits), _product(d_logits, weight.T)


def _product(a: Array, b: Array) -> Array:
    """The product of matrices, summed in float32 or wider."""
    return product(a, b, dtype=jnp.promote_types(a.dtype, jnp.float32))
