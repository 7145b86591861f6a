"""Attention beyond the ops of `jax_kernels`: with dropout, of a part of a prompt over pages, over a ring of devices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from aifx.nn import layers
from aifx.parallel.context import ForwardContext
from jax_kernels._ops.attention import attention_with_lse
from jax_kernels._ops.attention.mask import Mask, SegmentIds
from jax_kernels.implementations import current_device


def attention_with_dropout(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rate: float,
    ctx: ForwardContext,
    place: int,
    segment_ids: SegmentIds | None = None,
    window: int | None = None,
    scale: float | None = None,
    logit_softcap: float | None = None,
) -> jax.Array:
    """Causal attention with dropout of its weights, as q, `[batch, seq, num_heads, head_dim]`.

    k and v `[batch, all steps, num_kv_heads, head_dim]`, `segment_ids` and the options after it as in
    `jax_kernels.attention`, whose implementations have no dropout: this one holds all scores.
    """
    wide, group, (_, seq, heads, _) = jnp.promote_types(q.dtype, jnp.float32), q.shape[2] // k.shape[2], q.shape
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    positions = ctx.layout.seq_positions(seq)
    mask = Mask(causal=True, window=window, q_offset=ctx.layout.seq_start(seq), segment_ids=segment_ids)
    seen = mask.block(0, seq, 0, k.shape[1])
    assert seen is not None
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) * (scale or q.shape[-1] ** -0.5)
    if logit_softcap is not None:
        scores = logit_softcap * jnp.tanh(scores / logit_softcap)
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    first = ctx.layout.index(axes) * heads if (axes := ctx.layout.axes("heads")) else 0
    number = (first + jnp.arange(heads))[:, None] * k.shape[1] + positions
    return jnp.einsum("bhqk,bkhd->bqhd", layers.dropout(weights, rate, ctx, place, number).astype(v.dtype), v)


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

    The queries are a part of a prompt, whose keys and values the cache holds already.
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
        keys, values = (_take_pages(x, here) for x in (k_pages, v_pages))
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

    # A softmax over all keys, a piece at a time (online softmax, Milakov and Gimelshein 2018, arXiv 1805.02867). The
    # carry holds, of the keys so far, the largest score, the sum of exp(score - largest), and the values weighted
    # by the same. If a piece has a larger score, both sums are first multiplied by exp(old largest - new largest).
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


def _take_pages(pages: jax.Array, table: jax.Array) -> jax.Array:
    """The pages that a piece of each row's table names, end to end: `[kv_heads, batch, keys, head_dim]`."""
    taken = jnp.take(pages, table, axis=1, mode="clip")
    return taken.reshape(pages.shape[0], len(table), -1, pages.shape[-1])


Partial: TypeAlias = tuple[Array, Array]
"""A result `[batch, len, heads, head_dim]`, and the log-sum-exp of its scores `[batch, heads, len]`."""


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def ring_attention(q: Array, k: Array, v: Array, axes: tuple[str, ...]) -> Array:
    """Causal attention of this device's queries over the keys of all devices along `axes`, as q.

    No device ever holds all keys and values. They go round the devices, and partial results combine by their
    log-sum-exp (Liu et al. 2023, "Ring Attention", arXiv 2310.01889). The way back sends them round again with their
    gradients: nothing is kept of them.

    Devices have pieces of a sequence in zigzag order (`aifx.parallel.mesh.zigzag`): of 2n pieces, device i has i and
    2n - 1 - i. Under a causal mask, each turn then has the same work on every device: either all of its queries see the
    first piece of the keys that arrive, or its last piece of queries sees all of them.

    q `[batch, len, heads, head_dim]`, k and v `[batch, len, kv_heads, head_dim]`: the steps of a device.
    """
    return _ring_forward(q, k, v, axes)[0]


def _ring_forward(q: Array, k: Array, v: Array, axes: tuple[str, ...]) -> tuple[Array, Any]:
    own, count = lax.axis_index(axes), lax.axis_size(axes)
    total = attention_with_lse(q, k, v, causal=True)
    total = total[0].astype(jnp.float32), total[1]
    kv = k, v
    for turn in range(1, count):
        kv = _passed_on(*kv, axes=axes)
        is_before = own >= turn  # these keys come from a device whose first piece is earlier
        total = _combined(total, lax.cond(is_before, _of_early_keys, _of_late_queries, q, *kv))
    out = total[0].astype(q.dtype)
    return out, (q, k, v, out, total[1])


def _ring_backward(axes: tuple[str, ...], residuals: Any, d_out: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, lse = residuals
    own, count = lax.axis_index(axes), lax.axis_size(axes)
    lean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)  # [batch, len, heads]

    def gradients(compute: Any, *operands: Array) -> tuple[Array, ...]:
        (part, part_lse), pull = jax.vjp(compute, *operands)
        share = jnp.exp(part_lse - lse).swapaxes(1, 2)  # of this part in the result; 0 where it saw nothing
        d_part = share[..., None] * d_out
        d_lse = share * (jnp.sum(d_out.astype(jnp.float32) * part.astype(jnp.float32), axis=-1) - lean)
        found = pull((d_part.astype(part.dtype), d_lse.swapaxes(1, 2).astype(part_lse.dtype)))
        return tuple(x.astype(jnp.float32) for x in found)

    d_q, *d_kv = gradients(partial(attention_with_lse, causal=True), q, k, v)
    kv = k, v
    for turn in range(1, count):
        kv, d_kv = _passed_on(*kv, axes=axes), list(_passed_on(*d_kv, axes=axes))
        both = partial(gradients, _of_early_keys), partial(gradients, _of_late_queries)
        more_q, *more_kv = lax.cond(own >= turn, *both, q, *kv)
        d_q, d_kv = d_q + more_q, [x + more for x, more in zip(d_kv, more_kv, strict=True)]
    d_k, d_v = _passed_on(*d_kv, axes=axes)  # home again
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


ring_attention.defvjp(_ring_forward, _ring_backward)


def _of_early_keys(q: Array, k: Array, v: Array) -> Partial:
    """All queries see the first piece of the keys, and none of the last."""
    half = k.shape[1] // 2
    return attention_with_lse(q, k[:, :half], v[:, :half])


def _of_late_queries(q: Array, k: Array, v: Array) -> Partial:
    """The last piece of the queries sees all keys, and the first piece none."""
    half = q.shape[1] // 2
    out, lse = attention_with_lse(q[:, half:], k, v)
    return jnp.pad(out, ((0, 0), (half, 0), (0, 0), (0, 0))), jnp.pad(
        lse, ((0, 0), (0, 0), (half, 0)), constant_values=-jnp.inf
    )


def _combined(one: Partial, other: Partial) -> Partial:
    lse = jnp.logaddexp(one[1], other[1])
    shares = (jnp.exp(part[1] - lse).swapaxes(1, 2)[..., None] for part in (one, other))
    return sum(share * part[0] for share, part in zip(shares, (one, other), strict=True)), lse  # type: ignore[return-value]


def _passed_on(k: Array, v: Array, *, axes: tuple[str, ...]) -> tuple[Array, Array]:
    """The keys and values, or their gradients, of the device before; this device's go to the one after it."""
    count = lax.axis_size(axes)
    following = [(i, (i + 1) % count) for i in range(count)]
    return lax.ppermute(k, axes, following), lax.ppermute(v, axes, following)
