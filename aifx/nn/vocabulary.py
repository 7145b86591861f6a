"""A vocabulary that devices share: each has the rows of some tokens, and none ever has them all.

`axes` are the mesh axes over which it is divided, in the order of the mesh. Tokens of this device are its own among the
devices along `tensor` (`Layout.own_tokens`). Devices exchange vectors and sums of tokens, some at a time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from aifx.parallel.layout import Layout
from jax_kernels.products import product

CHUNK_TOKENS, CHUNK_LOGITS = 1 << 14, 1 << 26
"""Tokens whose vectors the devices that share a vocabulary exchange at a time, and elements of their logits: 256 MB."""


def lookup(table: Array, ids: Array, layout: Layout, vocab_size: int) -> Array:
    """The vectors of this device's own tokens, `[own tokens, embed]`.

    Args:
        table: this device's part of `[vocab, embed]`.
        ids: `[tokens]`, the same on the devices along `tensor`.
    """
    axes = layout.dividing("vocab", vocab_size)
    if not axes:
        return table[layout.own_tokens(ids)]
    # Devices along `tensor` have the same ids. What they add up for the tokens of all is scattered as it was gathered.
    shared = tuple(axis for axis in layout.axes("tokens") if axis in axes)
    others = tuple(axis for axis in axes if axis not in shared)
    parts, chunks = layout.size(shared), _num_chunks(ids.size * layout.size(others), ids.size // layout.size(shared), 1)

    @jax.checkpoint  # otherwise the backward pass is given a mask of the vectors of all tokens
    def vectors(_: None, some: Array) -> tuple[None, Array]:
        wanted = some.reshape(-1)
        wanted = lax.all_gather(wanted, others, tiled=True) if others else wanted
        local = wanted - layout.index(axes) * table.shape[0]
        is_here = (local >= 0) & (local < table.shape[0])
        found = jnp.where(is_here[:, None], table[jnp.clip(local, 0, table.shape[0] - 1)], 0)
        return None, lax.psum_scatter(found, axes, tiled=True)

    by_chunk = ids.reshape(parts, chunks, -1).swapaxes(0, 1)
    found = lax.scan(vectors, None, by_chunk)[1] if chunks > 1 else vectors(None, by_chunk[0])[1]
    found = found.reshape(-1, table.shape[1])
    return found if shared or not layout.axes("tokens") else layout.own_tokens(found)


def cross_entropies(x: Array, weight: Array, labels: Array, axes: tuple[str, ...], cap: float | None) -> Array:
    """The loss of each of this device's own tokens, float32 or wider; 0 for a label below 0.

    Args:
        x: `[own tokens, embed]`.
        weight: this device's part of `[embed, vocab]`.
        labels: `[own tokens]`, of the whole vocabulary.
    """

    @jax.checkpoint
    def losses(x: Array, labels: Array) -> Array:
        every, targets = (lax.all_gather(y, axes, tiled=True) for y in (x, labels))
        logits = _capped(_wide_product(every, weight), cap)[0]
        top = lax.pmax(lax.stop_gradient(logits.max(axis=-1)), axes)
        lse = top + jnp.log(lax.psum(jnp.exp(logits - top[:, None]).sum(axis=-1), axes))
        hit = _hits(targets, logits.shape[1], axes)
        found = lse - lax.psum(jnp.where(hit, logits, 0.0).sum(axis=-1), axes)
        return jnp.where(labels >= 0, _own(found, labels.size, axes), 0.0)

    chunks = _num_chunks(labels.size * lax.axis_size(axes), labels.size, weight.shape[1])
    by_chunk = x.reshape(chunks, -1, x.shape[1]), labels.reshape(chunks, -1)
    found: Array = lax.map(lambda chunk: losses(*chunk), by_chunk)
    return found.reshape(-1)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cross_entropy_sum(x: Array, weight: Array, labels: Array, axes: tuple[str, ...], cap: float | None) -> Array:
    """The sum of `cross_entropies`. Gradients are formed on the way forward: three products for four.

    Every device must be asked for the same gradient of its sum, as devices that add up their sums are.
    """
    return _forward_sum(x, weight, labels, axes, cap)[0]


def _forward_sum(
    x: Array, weight: Array, labels: Array, axes: tuple[str, ...], cap: float | None
) -> tuple[Array, tuple[Array, Array]]:
    def add(carry: tuple[Array, Array], chunk: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        x, labels = chunk
        every, targets = (lax.all_gather(y, axes, tiled=True) for y in (x, labels))
        logits, slope = _capped(_wide_product(every, weight), cap)
        top = lax.pmax(logits.max(axis=-1), axes)
        shares = jnp.exp(logits - top[:, None])
        hit = _hits(targets, logits.shape[1], axes)
        sums, expected = lax.psum((shares.sum(axis=-1), jnp.where(hit, logits, 0.0).sum(axis=-1)), axes)
        counts = targets >= 0
        loss = jnp.where(counts, top + jnp.log(sums) - expected, 0.0)
        d_logits = jnp.where(counts[:, None], shares / sums[:, None] - hit, 0.0)
        d_logits = (d_logits if slope is None else d_logits * slope).astype(x.dtype)
        d_x = lax.psum_scatter(_wide_product(d_logits, weight.T), axes, tiled=True)
        total, d_weight = carry
        carry = total + _own(loss, labels.size, axes).sum(), d_weight + _wide_product(every.T, d_logits)
        return carry, d_x.astype(x.dtype)

    wide = jnp.promote_types(x.dtype, jnp.float32)
    chunks = _num_chunks(labels.size * lax.axis_size(axes), labels.size, weight.shape[1])
    by_chunk = x.reshape(chunks, -1, x.shape[1]), labels.reshape(chunks, -1)
    zero = jnp.zeros((), wide), jnp.zeros(weight.shape, wide)
    (total, d_weight), d_x = lax.scan(add, zero, by_chunk)
    return total, (d_x.reshape(x.shape), d_weight.astype(weight.dtype))


def _backward_sum(axes: tuple[str, ...], cap: float | None, residuals: Any, d_loss: Array) -> Any:
    d_x, d_weight = residuals
    return (d_x * d_loss).astype(d_x.dtype), (d_weight * d_loss).astype(d_weight.dtype), None


cross_entropy_sum.defvjp(_forward_sum, _backward_sum)


def _num_chunks(tokens: int, own: int, vocab: int) -> int:
    """Into how many chunks of equal size `own` tokens are cut, since the devices exchange `tokens` in all."""
    wanted = -(-tokens // max(1, min(CHUNK_TOKENS, CHUNK_LOGITS // vocab)))
    return next(n for n in range(min(wanted, own), own + 1) if own % n == 0)


def _hits(targets: Array, size: int, axes: tuple[str, ...]) -> Array:
    """Where the logits of targets are in this device's part of `size` of the vocabulary: bool `[tokens, size]`."""
    local = targets - lax.axis_index(axes) * size
    return local[:, None] == lax.broadcasted_iota(local.dtype, (targets.size, size), 1)


def _own(found: Array, size: int, axes: tuple[str, ...]) -> Array:
    return lax.dynamic_slice_in_dim(found, lax.axis_index(axes) * size, size)


def _capped(logits: Array, cap: float | None) -> tuple[Array, Array | None]:
    """Logits within plus or minus the cap, and their slope."""
    if cap is None:
        return logits, None
    capped = jnp.tanh(logits / cap)
    return cap * capped, 1.0 - jnp.square(capped)


def _wide_product(a: Array, b: Array) -> Array:
    return product(a, b, dtype=jnp.promote_types(a.dtype, jnp.float32))
