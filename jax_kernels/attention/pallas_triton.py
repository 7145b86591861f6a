"""Attention on NVIDIA GPUs as Pallas kernels that Triton compiles: FlashAttention-2 (Dao 2023, arXiv 2307.08691).

Forward, a program holds a block of queries and walks over the blocks of keys that any of them sees. It keeps, for each
query, the highest score so far, the sum of the weights relative to it and the weighted sum of the values, and corrects
both sums when a higher score comes: the softmax needs one pass, and scores live in registers alone. The backward forms
them again from the log-sum-exp that the forward left, in two kernels: one holds keys and walks over queries (dk, dv),
the other holds queries and walks over keys (dq), so that no two programs add to the same place.

What makes it fast:
- Blocks that the mask hides are not visited, and those that a causal mask leaves whole are not masked (`_walk`).
- Softmax runs on powers of 2, which the GPU computes itself, with log2(e) in the factor of the scores (`_raw_scores`).
- Arrays are read where they lie and never padded: Triton's blocks, powers of two, mask what is beyond in their loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels import forms
from jax_kernels.attention.call import Call
from jax_kernels.forms import Config, Device

LOG2_E = math.log2(math.e)
SMALLEST_BLOCK = 16  # the smallest side of a product that tensor cores take
KERNELS = ("", "dkv_", "dq_")  # forward, and the two of the backward
NAMES = ("block_q", "block_k", "num_warps", "num_stages")


def attention(
    call: Call,
    config: Config,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_offset: jax.Array | None,
    segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Out as q `[batch, q_len, num_heads, head_dim]`, log-sum-exp `[batch, num_heads, q_len]` float32."""
    offset = None if q_offset is None else q_offset.astype(jnp.int32).reshape(1)
    out, lse = _attention(call, config, forms.is_interpreting(), offset, segment_ids, q, k, v)
    return out, lse


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(call: Call, config: Config, interpret: bool, *operands: Any) -> Any:
    """`operands` are offset `[1]` or None, segment_ids or None, q, k, v."""
    return _run(_forward_kernel, "", ("query", "sum"), call, config, interpret, operands)


def _forward(call: Call, config: Config, interpret: bool, *operands: Any) -> Any:
    result = _attention(call, config, interpret, *operands)
    return result, (operands, *result)


def _backward(call: Call, config: Config, interpret: bool, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    operands, out, lse = residuals
    d_out, d_lse = cotangents
    # Each score's gradient is p (dp - delta), and the log-sum-exp's own gradient adds p d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1).transpose(0, 2, 1) - d_lse
    # Of a row that sees nothing each p is 2 ** (score - inf) = 0.
    log2_sum = jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2_E)
    operands = (*operands, d_out, log2_sum, delta)
    d_k, d_v = _run(_dkv_kernel, "dkv_", ("key", "key"), call, config, interpret, operands)
    (d_q,) = _run(_dq_kernel, "dq_", ("query",), call, config, interpret, operands)
    return None, None, d_q, d_k, d_v


_attention.defvjp(_forward, _backward)


def _run(kernel: Any, name: str, outputs: Any, call: Call, config: Config, interpret: bool, operands: Any) -> Any:
    """One of KERNELS, a program for each (block, head, batch): of keys for "dkv_", of queries otherwise."""
    block_q, block_k, num_warps, num_stages = (dict(config)[name + of] for of in NAMES)
    by_key = name == "dkv_"
    blocks = pl.cdiv(call.kv_len, block_k) if by_key else pl.cdiv(call.q_len, block_q)
    specs = _specs(call, block_q, block_k, by_key)
    inputs = ("offset", "ids", "query", "key", "key", "query", "sum", "sum")[: len(operands)]
    _, _, q, k, *_ = operands
    shapes = {
        "query": jax.ShapeDtypeStruct(q.shape, q.dtype),
        "key": jax.ShapeDtypeStruct(k.shape, k.dtype),
        "sum": jax.ShapeDtypeStruct((call.batch, call.num_heads, call.q_len), jnp.float32),
    }
    return pl.pallas_call(
        partial(kernel, call, block_q, block_k),
        grid=(blocks, call.num_kv_heads if by_key else call.num_heads, call.batch),
        in_specs=[None if x is None else specs[kind] for kind, x in zip(inputs, operands, strict=True)],
        out_specs=tuple(specs[kind] for kind in outputs),
        out_shape=tuple(shapes[kind] for kind in outputs),
        # Parameters of Triton's also choose Triton, which is not each JAX version's default on a GPU.
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        interpret=interpret,
        name=f"attention_{name or 'forward'}".rstrip("_"),
    )(*operands)


def _specs(call: Call, block_q: int, block_k: int, by_key: bool) -> dict[str, Any]:
    """What of each array a program may reach: its head in whole length, since the mask says which blocks it takes. A
    head of queries goes with its one of keys; `by_key`, a head of keys goes with all of its group's queries."""
    width, q_len, kv_len = _width(call), max(call.q_len, block_q), max(call.kv_len, block_k)
    heads, group = (call.group if call.group > 1 else None, 1) if by_key else (None, call.group)
    return {
        "offset": pl.BlockSpec((1,), lambda block, head, batch: (0,)),
        "ids": pl.BlockSpec((None, max(q_len, kv_len)), lambda block, head, batch: (batch, 0)),
        "query": pl.BlockSpec((None, q_len, heads, width), lambda block, head, batch: (batch, 0, head, 0)),
        "key": pl.BlockSpec((None, kv_len, None, width), lambda block, head, batch: (batch, 0, head // group, 0)),
        "sum": pl.BlockSpec((None, heads, q_len), lambda block, head, batch: (batch, head, 0)),
    }


def _forward_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    offset_ref, ids, q, k, v, out, lse = refs
    offset: Any = call.q_offset if offset_ref is None else offset_ref[0]
    q_start = _query_block(call) * block_q
    queries = _load(call, q, (), q_start, block_q, call.q_len)
    query_rows = _rows(ids, q_start, block_q, call.q_len, axis=0)

    def step(k_start: Any, carry: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
        top, total, weighted = carry
        length = call.kv_len if masked else None
        raw, factor = _raw_scores(call, _dot(queries, _load(call, k, (), k_start, block_k, length), (1, 1)))
        if masked:
            seen = _seen(call, block_k, offset, query_rows, _rows(ids, k_start, block_k, call.kv_len, axis=1))
            raw = raw if seen is None else jnp.where(seen, raw, -jnp.inf)
        new_top = jnp.maximum(top, factor * jnp.max(raw, axis=1))
        # Of a row that has seen nothing yet: exp2(-inf - 0), not exp2(-inf + inf).
        base = jnp.where(new_top == -jnp.inf, 0.0, new_top) if masked else new_top
        p = jnp.exp2(factor * raw - base[:, None])
        decay = jnp.exp2(top - base)
        values = _load(call, v, (), k_start, block_k, length)
        weighted = decay[:, None] * weighted + _dot(p.astype(v.dtype), values, (1, 0))
        return new_top, decay * total + jnp.sum(p, axis=1), weighted

    top, total = jnp.full(block_q, -jnp.inf, jnp.float32), jnp.zeros(block_q, jnp.float32)
    carry = (top, total, jnp.zeros(queries.shape, jnp.float32))
    top, total, weighted = _walk(call, step, carry, _keys_seen(call, q_start + offset, block_q), call.kv_len, block_k)
    _store(call, out, q_start, weighted / jnp.where(total == 0.0, 1.0, total)[:, None], call.q_len)
    log_sum = top / LOG2_E + jnp.log(total)
    plgpu.store(lse.at[pl.ds(q_start, block_q)], log_sum, mask=_inside(q_start, block_q, call.q_len))


def _dkv_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    """Scores are `[keys, queries]` here: p and its gradient are then left operands, which may stay in registers."""
    offset_ref, ids, q, k, v, d_out, log2_sum, delta, d_k, d_v = refs
    offset: Any = call.q_offset if offset_ref is None else offset_ref[0]
    k_start = pl.program_id(0) * block_k
    keys, values = (_load(call, ref, (), k_start, block_k, call.kv_len) for ref in (k, v))
    key_rows = _rows(ids, k_start, block_k, call.kv_len, axis=0)

    def step(head: tuple[Any, ...], q_start: Any, carry: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
        d_keys, d_values = carry
        length = call.q_len if masked else None
        queries, d_outs = (_load(call, ref, head, q_start, block_q, length) for ref in (q, d_out))
        log2_sums = _load_row(log2_sum, head, q_start, block_q, length, jnp.inf)[None, :]
        deltas = _load_row(delta, head, q_start, block_q, length, 0)[None, :]
        seen = None
        if masked:
            seen = _seen(call, block_k, offset, _rows(ids, q_start, block_q, call.q_len, axis=1), key_rows)
        p, slope = _weights(call, _dot(keys, queries, (1, 1)), log2_sums, seen)
        d_values += _dot(p.astype(q.dtype), d_outs, (1, 0))
        d_scores = p * (_dot(values, d_outs, (1, 1)) - deltas) * slope
        return d_keys + _dot(d_scores.astype(q.dtype), queries, (1, 0)), d_values

    def walk_head(index: Any, carry: Any) -> Any:
        head = () if call.group == 1 else (index,)
        seeing = _queries_seeing(call, k_start - offset, block_k)
        return _walk(call, partial(step, head), carry, seeing, call.q_len, block_q)

    carry = (jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32))
    carry = walk_head(0, carry) if call.group == 1 else lax.fori_loop(0, call.group, walk_head, carry)
    _store(call, d_k, k_start, call.scale * carry[0], call.kv_len)
    _store(call, d_v, k_start, carry[1], call.kv_len)


def _dq_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    offset_ref, ids, q, k, v, d_out, log2_sum, delta, d_q = refs
    offset: Any = call.q_offset if offset_ref is None else offset_ref[0]
    q_start = _query_block(call) * block_q
    queries, d_outs = (_load(call, ref, (), q_start, block_q, call.q_len) for ref in (q, d_out))
    log2_sums = _load_row(log2_sum, (), q_start, block_q, call.q_len, jnp.inf)[:, None]
    deltas = _load_row(delta, (), q_start, block_q, call.q_len, 0)[:, None]
    query_rows = _rows(ids, q_start, block_q, call.q_len, axis=0)

    def step(k_start: Any, d_queries: jax.Array, masked: bool) -> jax.Array:
        length = call.kv_len if masked else None
        keys, values = (_load(call, ref, (), k_start, block_k, length) for ref in (k, v))
        seen = None
        if masked:
            seen = _seen(call, block_k, offset, query_rows, _rows(ids, k_start, block_k, call.kv_len, axis=1))
        p, slope = _weights(call, _dot(queries, keys, (1, 1)), log2_sums, seen)
        d_scores = p * (_dot(d_outs, values, (1, 1)) - deltas) * slope
        return d_queries + _dot(d_scores.astype(q.dtype), keys, (1, 0))

    keys_seen = _keys_seen(call, q_start + offset, block_q)
    d_queries = _walk(call, step, jnp.zeros(queries.shape, jnp.float32), keys_seen, call.kv_len, block_k)
    _store(call, d_q, q_start, call.scale * d_queries, call.q_len)


def _query_block(call: Call) -> Any:
    """The program's. Under a causal mask the last see the most keys: they begin, so that short ones fill the end."""
    block = pl.program_id(0)
    return pl.num_programs(0) - 1 - block if call.causal else block


class _Stretch(NamedTuple):
    """Rows `[start, stop)` of the other side that some of the held rows share; all of them share `whole`."""

    start: Any
    stop: Any
    whole: tuple[Any, Any]


def _keys_seen(call: Call, position: Any, size: int) -> _Stretch:
    """Keys that the `size` queries from `position` on see, segments aside."""
    start = 0 if call.window is None else position - call.window + 1
    if not call.causal:
        return _Stretch(start, call.kv_len, (0, call.kv_len))
    return _Stretch(start, position + size, (0, position + 1))


def _queries_seeing(call: Call, index: Any, size: int) -> _Stretch:
    """Queries that see the `size` keys of which the first is where query `index` stands."""
    stop = call.q_len if call.window is None else index + size - 1 + call.window
    if not call.causal:
        return _Stretch(0, stop, (0, call.q_len))
    return _Stretch(index, stop, (index + size - 1, call.q_len))


def _walk(call: Call, step: Callable[..., Any], carry: Any, rows: _Stretch, length: int, block: int) -> Any:
    """`step(start, carry, masked)` for each block of rows, masked where not all see it or the array ends in it."""

    def blocks(row: Any, up: int = 0) -> Any:
        row = row if isinstance(row, int) else jnp.clip(row, 0, length)
        return (row + up) // block if isinstance(row, int) else lax.div(row + up, block)

    def loop(first: Any, last: Any, carry: Any, masked: bool) -> Any:
        return lax.fori_loop(jnp.int32(first), jnp.int32(last), lambda i, x: step(i * block, x, masked), carry)

    first, last = blocks(rows.start), blocks(rows.stop, block - 1)
    # A window's blocks would need three loops, where ptxas made Hopper wait for each product of dk and dv (C7515).
    if call.has_segments or call.window is not None:
        return loop(first, last, carry, masked=True)
    whole_first, whole_last = blocks(rows.whole[0], block - 1), blocks(rows.whole[1])
    if not isinstance(whole_first, int):
        whole_first = jnp.minimum(whole_first, last)
        carry = loop(first, whole_first, carry, masked=True)
    if isinstance(whole_last, int) and length % block == 0:
        return loop(whole_first, last, carry, masked=False)
    whole_last = jnp.clip(whole_last, whole_first, last)
    carry = loop(whole_first, whole_last, carry, masked=False)
    return loop(whole_last, last, carry, masked=True)


def _rows(ids: Any | None, start: Any, size: int, length: int, axis: int) -> tuple[jax.Array, jax.Array | None]:
    """Indices of rows and their segments, if there are any, laid along one axis of a block of scores."""
    segments = None if ids is None else jnp.expand_dims(_load_row(ids, (), start, size, length, 0), 1 - axis)
    return jnp.expand_dims(start + lax.iota(jnp.int32, size), 1 - axis), segments


def _seen(call: Call, block_k: int, offset: Any, queries: Any, keys: Any) -> Any | None:
    """Who of two `_rows` sees whom, booleans that broadcast to the block's scores; None where all see all."""
    (query, query_segment), (key, key_segment) = queries, keys
    conditions: list[Any] = []
    if call.kv_len % block_k:
        conditions.append(key < call.kv_len)
    if call.causal:
        conditions.append(key <= query + offset)
    if call.window is not None:
        conditions.append(key > query + (offset - call.window))
    if call.has_segments:
        conditions.append(query_segment == key_segment)
    return reduce(jnp.logical_and, conditions) if conditions else None


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


def _width(call: Call) -> int:
    """Columns of a block: head_dim, or the power of two above it."""
    return max(pl.next_power_of_2(call.head_dim), SMALLEST_BLOCK)


def _inside(start: Any, size: int, length: int | None) -> Any | None:
    """Which of the rows the array has; None where it has all because blocks divide it or `length` is not given."""
    return None if length is None or length % size == 0 else start + lax.iota(jnp.int32, size) < length


def _reach(call: Call, start: Any, size: int, length: int | None) -> Any | None:
    """`_inside` for all columns of the rows, of which there may be more than head_dim."""
    rows, width = _inside(start, size, length), _width(call)
    columns = None if width == call.head_dim else lax.iota(jnp.int32, width) < call.head_dim
    masks = [None if rows is None else rows[:, None], None if columns is None else columns[None, :]]
    known = [jnp.broadcast_to(mask, (size, width)) for mask in masks if mask is not None]
    return reduce(jnp.logical_and, known) if known else None


def _load(call: Call, ref: Any, head: tuple[Any, ...], start: Any, size: int, length: int | None) -> jax.Array:
    """Rows of a head, zero beyond the array's end; without `length` they are known to be inside."""
    reach = _reach(call, start, size, length)
    return plgpu.load(ref.at[(pl.ds(start, size), *head)], mask=reach, other=None if reach is None else 0)


def _load_row(ref: Any, head: tuple[Any, ...], start: Any, size: int, length: int | None, other: float) -> jax.Array:
    inside = _inside(start, size, length)
    return plgpu.load(ref.at[(*head, pl.ds(start, size))], mask=inside, other=None if inside is None else other)


def _store(call: Call, ref: Any, start: Any, rows: jax.Array, length: int) -> None:
    size = rows.shape[0]
    plgpu.store(ref.at[pl.ds(start, size)], rows.astype(ref.dtype), mask=_reach(call, start, size, length))


def refuses(call: Call, device: Device) -> str | None:
    """Why the kernels cannot take this call on this device; None where they can."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "needs an NVIDIA GPU"
    if device.compute_capability < (8, 0):
        return "needs compute capability 8.0"
    if call.dtype not in ("float16", "bfloat16", "float32"):
        return call.dtype
    if call.head_dim > 256:
        return f"head_dim {call.head_dim} is more than 256"
    if call.is_empty:
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """From the best guess on, with blocks no longer than the lengths that they divide."""
    assert device.compute_capability is not None
    hopper = (9, 0) <= device.compute_capability < (12, 0)
    kind = "float32" if call.dtype == "float32" else "hopper" if hopper else "ampere"
    rows = [row for of, width, *row in _BLOCKS if (of, width) == (kind, max(64, _width(call)))]
    if not hopper and device.compute_capability != (8, 0):
        rows = rows[-1:]  # for what has 99 KiB of shared memory rather than 163 or 227
    longest = [max(SMALLEST_BLOCK, pl.next_power_of_2(length)) for length in (call.q_len, call.kv_len)]
    names = [kernel + name for kernel in KERNELS for name in NAMES]
    capped = [[x for q, k, *rest in row for x in (min(q, longest[0]), min(k, longest[1]), *rest)] for row in rows]
    return list(dict.fromkeys(tuple(zip(names, values, strict=True)) for values in capped))


# NAMES of each of KERNELS: what fits shared memory as compiled, ordered by reasoning, not timed. Few spill registers at
# whole blocks; dk and dv do with a soft-cap or odd lengths. float32, without tensor cores, needs more: small blocks.
_BLOCKS: tuple[tuple[Any, ...], ...] = (
    ("hopper", 64, (128, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2)),
    ("hopper", 64, (128, 128, 8, 2), (64, 64, 4, 2), (128, 128, 8, 2)),
    ("hopper", 64, (64, 64, 4, 3), (64, 64, 8, 2), (64, 64, 4, 3)),
    ("hopper", 128, (128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 3)),
    ("hopper", 128, (128, 64, 8, 3), (32, 128, 8, 3), (64, 64, 4, 2)),
    ("hopper", 128, (64, 64, 4, 2), (64, 64, 8, 2), (128, 64, 8, 2)),
    ("hopper", 256, (128, 64, 8, 2), (32, 64, 8, 2), (64, 64, 8, 2)),
    ("hopper", 256, (64, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
    ("ampere", 64, (128, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2)),
    ("ampere", 64, (128, 128, 8, 2), (64, 64, 8, 2), (128, 32, 4, 3)),
    ("ampere", 64, (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    ("ampere", 128, (128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
    ("ampere", 128, (64, 64, 4, 2), (32, 128, 8, 3), (128, 64, 8, 3)),
    ("ampere", 128, (64, 32, 4, 2), (32, 64, 4, 2), (64, 32, 4, 2)),
    ("ampere", 256, (64, 64, 8, 2), (64, 64, 8, 1), (64, 64, 8, 2)),
    ("ampere", 256, (128, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
    ("ampere", 256, (32, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 2)),
    ("float32", 64, (64, 32, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
    ("float32", 64, (32, 32, 8, 2), (32, 32, 8, 2), (32, 32, 8, 2)),
    ("float32", 128, (32, 16, 8, 2), (16, 32, 8, 2), (32, 16, 8, 2)),
    ("float32", 256, (32, 32, 8, 2), (16, 32, 8, 2), (32, 32, 8, 2)),
    ("float32", 256, (32, 16, 8, 1), (16, 32, 8, 1), (32, 16, 8, 1)),
)
