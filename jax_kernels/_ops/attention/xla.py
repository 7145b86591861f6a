"""Attention by blocks of queries, in plain XLA: what a mask hides is never computed, and the gradient is written out.

A block holds the scores of its queries against the keys that any of them sees, so a causal mask costs little more than
half of the full square. Grouped-query heads share a product instead of repeating keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.mask import Mask, SegmentIds
from jax_kernels.implementations import Config, Device
from jax_kernels.products import row_major

Residuals: TypeAlias = tuple[Any, ...]

MOST_BLOCKS = 32  # each is compiled, in some 0.3 s on a CPU

LARGEST_KEPT = 16 << 20
"""Bytes of a call's scores up to which they are kept for the backward pass. A hundred layers' fit into 2 GiB then.

Time of forward and backward with recomputed scores, over that with kept scores, on two cores of an EPYC, in 1, 2 and 4
layers: 8 x 256, 6 heads: 1.03, 1.06, 1.01; 1 x 2,048, 8 heads: 1.09, 0.92, 0.91; 4 x 1,024, 12 heads: 1.29, 0.92,
0.88. Large scores take longer to store and load than to recompute.
"""


class How(NamedTuple):
    """Attributes:
    block_q: queries of a block.
    keep_scores: let the backward pass use the scores of the forward pass, rather than recompute them.
    """

    block_q: int
    keep_scores: bool


class Block(NamedTuple):
    """Queries `q` of the block and keys `k` that one of them may see."""

    q: slice
    k: slice


def configs(call: Call, device: Device) -> Sequence[Config]:
    sizes = (size for size in (64, 128, 256, 512) if size < call.q_len <= MOST_BLOCKS * size)
    keep = ("keep_scores", int(_keeps_scores(call)))
    return [(("block_q", size), keep) for size in dict.fromkeys((_best_guess(call), *sizes))]


def _keeps_scores(call: Call) -> bool:
    return 4 * call.batch * call.num_heads * call.seen_pairs() <= LARGEST_KEPT


def _best_guess(call: Call) -> int:
    """Short blocks skip more of what a mask hides, long ones multiply faster and are compiled sooner.

    Speed over jax.nn's attention in blocks of 64, 128, 192 and 256 queries, forward and backward, float32 on two cores
    of an EPYC: causal 256: 1.4, 1.2, 1.2, 1.1; causal 1024: 1.8, 2.0, 2.0, 1.7; causal 2048 with a window of 256: 4.4,
    5.3, 5.4, 5.4. Unlike its time, what a block costs the compiler does not depend on its size.
    """
    return 64 if call.q_len <= 512 else max(128, -(-call.q_len // 16))


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
    chosen = dict(config)
    how = How(chosen.get("block_q", _best_guess(call)), bool(chosen.get("keep_scores", _keeps_scores(call))))
    grouped = q.reshape(call.batch, call.q_len, call.num_kv_heads, call.group, call.head_dim).transpose(0, 2, 3, 1, 4)
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out, lse = _attention(call, how, grouped, keys, values, q_offset, segment_ids)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape), lse.reshape(call.batch, call.num_heads, call.q_len)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    call: Call,
    how: How,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_offset: jax.Array | None,
    segment_ids: SegmentIds | None,
) -> tuple[jax.Array, jax.Array]:
    """q `[batch, kv_heads, group, q_len, head_dim]`, k and v `[batch, kv_heads, kv_len, head_dim]`; out as q, lse as q
    without head_dim."""
    result, _ = _forward(call, how, q, k, v, q_offset, segment_ids)
    return result


def _forward(
    call: Call,
    how: How,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_offset: jax.Array | None,
    segment_ids: SegmentIds | None,
) -> tuple[tuple[jax.Array, jax.Array], Residuals]:
    mask = call.mask(q_offset, segment_ids)
    outs, sums = [], []
    for block in _blocks(mask, how.block_q, q.shape[3], k.shape[2]):
        scores, _ = _scores(call, mask, block, q, k)
        top = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
        top = jnp.where(jnp.isneginf(top), 0.0, top)  # a row that sees nothing
        p = jnp.exp(scores - top)
        total = jnp.sum(p, axis=-1, keepdims=True)
        out = _einsum("bhgqk,bhkd->bhgqd", p.astype(v.dtype), v[:, :, block.k])
        outs.append((out / jnp.where(total == 0.0, 1.0, total)).astype(q.dtype))
        sums.append((top + jnp.log(total))[..., 0])
    out, lse = jnp.concatenate(outs, axis=3), jnp.concatenate(sums, axis=3)
    return (out, lse), (q, k, v, q_offset, segment_ids, out, lse)


def _backward(
    call: Call, how: How, residuals: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    if not how.keep_scores:
        # XLA would find that the products below are those of the forward pass, and keep the scores of all layers. On a
        # CPU under JAX 0.10.2 it does so all the same.
        residuals, cotangents = jax.lax.optimization_barrier((residuals, cotangents))
    q, k, v, q_offset, segment_ids, out, lse = residuals
    d_out, d_lse = cotangents
    mask = call.mask(q_offset, segment_ids)
    wide = lse.dtype
    lse = jnp.where(jnp.isneginf(lse), 0.0, lse)
    # Each score's gradient is p (dp - delta), and the log-sum-exp's own gradient adds p d_lse.
    delta = jnp.sum(out.astype(wide) * d_out.astype(wide), axis=-1) - d_lse
    d_q: list[jax.Array] = []
    d_k, d_v = jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
    for block in _blocks(mask, how.block_q, q.shape[3], k.shape[2]):
        scores, slope = _scores(call, mask, block, q, k)
        p = jnp.exp(scores - lse[..., block.q, None])
        d_out_block = d_out[..., block.q, :]
        d_p = _einsum("bhgqd,bhdk->bhgqk", d_out_block, v[:, :, block.k].swapaxes(2, 3))
        d_scores = p * (d_p - delta[..., block.q, None]) * call.scale
        d_scores = (d_scores if slope is None else d_scores * slope).astype(q.dtype)
        d_q.append(_einsum("bhgqk,bhkd->bhgqd", d_scores, k[:, :, block.k]))
        outside = ((0, 0), (0, 0), (block.k.start, k.shape[2] - block.k.stop), (0, 0))
        d_k += jnp.pad(_einsum("bhkgq,bhgqd->bhkd", _by_key(d_scores), q[..., block.q, :]), outside)
        d_v += jnp.pad(_einsum("bhkgq,bhgqd->bhkd", _by_key(p.astype(v.dtype)), d_out_block), outside)
    return jnp.concatenate(d_q, axis=3).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_attention.defvjp(_forward, _backward)


def _blocks(mask: Mask, size: int, q_len: int, kv_len: int) -> list[Block]:
    blocks = []
    for start in range(0, max(q_len, 1), size):  # an empty block of no queries: its results have shapes all the same
        stop = min(start + size, q_len)
        blocks.append(Block(slice(start, stop), slice(*mask.keys_seen(start, stop, kv_len))))
    return blocks


def _scores(call: Call, mask: Mask, block: Block, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Masked scores of a block, `[batch, kv_heads, group, queries, keys]`, and the slope of the soft-cap at each."""
    scores = call.scale * _einsum("bhgqd,bhdk->bhgqk", q[..., block.q, :], k[:, :, block.k].swapaxes(2, 3))
    slope = None
    if call.logit_softcap is not None:
        capped = jnp.tanh(scores / call.logit_softcap)
        scores, slope = call.logit_softcap * capped, 1.0 - jnp.square(capped)
    seen = mask.block(block.q.start, block.q.stop, block.k.start, block.k.stop)
    if seen is not None:
        scores = jnp.where(seen if seen.ndim == 2 else seen[:, :, None], scores, -jnp.inf)
    return scores, slope


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Products of row-major matrices, summed in float32 or wider."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(equation, row_major(a), row_major(b), preferred_element_type=wide)


def _by_key(scores: jax.Array) -> jax.Array:
    """`[batch, kv_heads, group, queries, keys]` as `[batch, kv_heads, keys, group, queries]`."""
    return jnp.moveaxis(scores, -1, 2)
