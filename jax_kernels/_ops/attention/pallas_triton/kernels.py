"""The three kernels: the forward, the gradients of keys and values, and that of queries.

No array of all scores is ever in memory (FlashAttention, Dao et al. 2022, arXiv 2205.14135). A program has a block of
queries and walks along blocks of keys. For each query it holds the largest score so far, the sum of
exp(score - largest) and the values weighted by the same: the online softmax of Milakov and Gimelshein 2018, arXiv
1805.02867. If a block has a larger score, both sums are first multiplied by exp(old largest - new largest).
Exponentials are powers of 2, which the hardware has.

The backward pass forms the scores again, from q, k and the log-sum-exp of each query, which the forward leaves. Let p
be a query's weights and dp their gradient, d_out times the values. The weights sum to 1, so a score's gradient is
p (dp - delta), where delta is the sum of p dp over the keys: it equals the sum of d_out out over head_dim.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.pallas_triton.block_iteration import indices, keys_seen, queries_seeing, sees, walk
from jax_kernels._ops.attention.pallas_triton.memory import inside, load, load_row, store

LOG2_E = math.log2(math.e)


def forward_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    offset_ref, ids, q, k, v, out, lse = refs
    offset: Any = call.q_offset if offset_ref is None else offset_ref[0]
    q_start = _query_block(call) * block_q
    queries = load(call, q, (), q_start, block_q, call.q_len)
    query_rows = indices(ids, q_start, block_q, call.q_len, axis=0)

    def step(k_start: Any, carry: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
        top, total, weighted = carry
        length = call.kv_len if masked else None
        raw, factor = _raw_scores(call, _dot(queries, load(call, k, (), k_start, block_k, length), (1, 1)))
        if masked:
            seen = sees(call, block_k, offset, query_rows, indices(ids, k_start, block_k, call.kv_len, axis=1))
            raw = raw if seen is None else jnp.where(seen, raw, -jnp.inf)
        new_top = jnp.maximum(top, factor * jnp.max(raw, axis=1))
        # Of a row that has seen nothing yet: exp2(-inf - 0), not exp2(-inf + inf).
        base = jnp.where(new_top == -jnp.inf, 0.0, new_top) if masked else new_top
        p = jnp.exp2(factor * raw - base[:, None])
        decay = jnp.exp2(top - base)
        values = load(call, v, (), k_start, block_k, length)
        weighted = decay[:, None] * weighted + _dot(p.astype(v.dtype), values, (1, 0))
        return new_top, decay * total + jnp.sum(p, axis=1), weighted

    top, total = jnp.full(block_q, -jnp.inf, jnp.float32), jnp.zeros(block_q, jnp.float32)
    carry = (top, total, jnp.zeros(queries.shape, jnp.float32))
    top, total, weighted = walk(call, step, carry, keys_seen(call, q_start + offset, block_q), call.kv_len, block_k)
    store(call, out, q_start, weighted / jnp.where(total == 0.0, 1.0, total)[:, None], call.q_len)
    log_sum = top / LOG2_E + jnp.log(total)
    plgpu.store(lse.at[pl.ds(q_start, block_q)], log_sum, mask=inside(q_start, block_q, call.q_len))


def dkv_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    """Scores are `[keys, queries]` here: p and its gradient are then left operands, which may stay in registers."""
    offset_ref, ids, q, k, v, d_out, log2_sum, delta, d_k, d_v = refs
    offset: Any = call.q_offset if offset_ref is None else offset_ref[0]
    k_start = pl.program_id(0) * block_k
    keys, values = (load(call, ref, (), k_start, block_k, call.kv_len) for ref in (k, v))
    key_rows = indices(ids, k_start, block_k, call.kv_len, axis=0)

    def step(head: tuple[Any, ...], q_start: Any, carry: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
        d_keys, d_values = carry
        length = call.q_len if masked else None
        queries, d_outs = (load(call, ref, head, q_start, block_q, length) for ref in (q, d_out))
        log2_sums = load_row(log2_sum, head, q_start, block_q, length, jnp.inf)[None, :]
        deltas = load_row(delta, head, q_start, block_q, length, 0)[None, :]
        seen = None
        if masked:
            seen = sees(call, block_k, offset, indices(ids, q_start, block_q, call.q_len, axis=1), key_rows)
        p, slope = _weights(call, _dot(keys, queries, (1, 1)), log2_sums, seen)
        d_values += _dot(p.astype(q.dtype), d_outs, (1, 0))
        d_scores = p * (_dot(values, d_outs, (1, 1)) - deltas) * slope
        return d_keys + _dot(d_scores.astype(q.dtype), queries, (1, 0)), d_values

    def walk_head(index: Any, carry: Any) -> Any:
        head = () if call.group == 1 else (index,)
        seeing = queries_seeing(call, k_start - offset, block_k)
        return walk(call, partial(step, head), carry, seeing, call.q_len, block_q)

    carry = (jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32))
    carry = walk_head(0, carry) if call.group == 1 else lax.fori_loop(0, call.group, walk_head, carry)
    store(call, d_k, k_start, call.scale * carry[0], call.kv_len)
    store(call, d_v, k_start, carry[1], call.kv_len)


def dq_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    offset_ref, ids, q, k, v, d_out, log2_sum, delta, d_q = refs
    offset: Any = call.q_offset if offset_ref is None else offset_ref[0]
    q_start = _query_block(call) * block_q
    queries, d_outs = (load(call, ref, (), q_start, block_q, call.q_len) for ref in (q, d_out))
    log2_sums = load_row(log2_sum, (), q_start, block_q, call.q_len, jnp.inf)[:, None]
    deltas = load_row(delta, (), q_start, block_q, call.q_len, 0)[:, None]
    query_rows = indices(ids, q_start, block_q, call.q_len, axis=0)

    def step(k_start: Any, d_queries: jax.Array, masked: bool) -> jax.Array:
        length = call.kv_len if masked else None
        keys, values = (load(call, ref, (), k_start, block_k, length) for ref in (k, v))
        seen = None
        if masked:
            seen = sees(call, block_k, offset, query_rows, indices(ids, k_start, block_k, call.kv_len, axis=1))
        p, slope = _weights(call, _dot(queries, keys, (1, 1)), log2_sums, seen)
        d_scores = p * (_dot(d_outs, values, (1, 1)) - deltas) * slope
        return d_queries + _dot(d_scores.astype(q.dtype), keys, (1, 0))

    carry, seeing = jnp.zeros(queries.shape, jnp.float32), keys_seen(call, q_start + offset, block_q)
    d_queries = walk(call, step, carry, seeing, call.kv_len, block_k)
    store(call, d_q, q_start, call.scale * d_queries, call.q_len)


def _query_block(call: Call) -> Any:
    """The program's. Under a causal mask the last see the most keys: they begin, so that short ones fill the end."""
    block = pl.program_id(0)
    return pl.num_programs(0) - 1 - block if call.causal else block


def _raw_scores(call: Call, products: jax.Array) -> tuple[jax.Array, float]:
    """`raw` and a `factor` > 0 with factor * raw = score * log2(e).

    A positive factor may be applied after the maximum, in one instruction with the subtraction of it.
    """
    if call.logit_softcap is not None:
        return jnp.tanh(products * (call.scale / call.logit_softcap)), call.logit_softcap * LOG2_E
    if call.scale > 0:
        return products, call.scale * LOG2_E
    return products * call.scale, LOG2_E


def _weights(call: Call, products: jax.Array, log2_sum: jax.Array, seen: Any | None) -> tuple[jax.Array, Any]:
    """p as the forward had it, and the slope of the soft-cap at each score."""
    raw, factor = _raw_scores(call, products)
    p = jnp.exp2(factor * raw - log2_sum)
    return p if seen is None else jnp.where(seen, p, 0.0), 1.0 if call.logit_softcap is None else 1.0 - raw * raw


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    # Without a word on precision, Triton rounds float32 to TF32.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
