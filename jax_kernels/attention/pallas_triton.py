"""Attention on NVIDIA GPUs as Pallas kernels that Triton compiles: FlashAttention-2 (Dao 2023, arXiv 2307.08691).

Forward, a program holds a block of queries and walks over the blocks of keys that any of them sees. It keeps, for each
query, the highest score so far, the sum of the weights relative to it and the weighted sum of the values, and corrects
both sums when a higher score comes: the softmax needs one pass, and scores live in registers alone. The backward forms
them again from the log-sum-exp that the forward left, in two kernels: one holds keys and walks over queries (dk, dv),
the other holds queries and walks over keys (dq), so that no two programs add to the same place.

What makes it fast:
- Blocks that the mask hides are not visited, and those that a causal mask leaves whole are not masked (`_walk`).
- Softmax runs on powers of 2, which the GPU computes itself, with log2(e) in the factor of the scores (`_raw_scores`).
- Triton's blocks are powers of two, so a head_dim such as 80 is held in parts, 64 + 16, not padded to 128 (`_parts`).
- Arrays are read where they lie, `[batch, len, heads, head_dim]`; loads mask what a last block has too many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels import forms
from jax_kernels.attention.call import Call
from jax_kernels.forms import Config, Device

Parts: TypeAlias = tuple[jax.Array, ...]
"""Rows of a head, `[rows, head_dim]`, as column blocks whose widths are powers of two."""

KERNELS = ("", "dkv_", "dq_")
NAMES = ("block_q", "block_k", "num_warps", "num_stages")
LOG2_E = math.log2(math.e)
SMALLEST_BLOCK = 16  # the smallest side of a product that tensor cores take


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
    return _attention(call, config, forms.is_interpreting(), q, k, v, q_offset, segment_ids)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(call: Call, config: Config, interpret: bool, *operands: Any) -> tuple[jax.Array, jax.Array]:
    result, _ = _forward(call, config, interpret, *operands)
    return result


def _forward(
    call: Call, config: Config, interpret: bool, *operands: Any
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    q, k, v, q_offset, segment_ids = operands
    block_q, block_k, params = _sizes(config, "")
    specs = _Specs(call, block_q, block_k, per_key_head=False)
    offset = None if q_offset is None else q_offset.astype(jnp.int32).reshape(1)
    out, lse = pl.pallas_call(
        partial(_forward_kernel, call, block_q, block_k),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((call.batch, call.num_heads, call.q_len), jnp.float32),
        ),
        grid=(pl.cdiv(call.q_len, block_q), call.num_heads, call.batch),
        in_specs=[*specs.mask(offset, segment_ids), specs.queries(), specs.keys(), specs.keys()],
        out_specs=(specs.queries(), specs.row_sums()),
        compiler_params=params,
        interpret=interpret,
        name="attention_forward",
    )(offset, segment_ids, q, k, v)
    return (out, lse), (q, k, v, offset, segment_ids, out, lse)


def _backward(
    call: Call, config: Config, interpret: bool, residuals: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    q, k, v, offset, segment_ids, out, lse = residuals
    d_out, d_lse = cotangents
    # Each score's gradient is p (dp - delta), and the log-sum-exp's own gradient adds p d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1).transpose(0, 2, 1) - d_lse
    # Of a row that sees nothing each p is 2 ** (score - inf) = 0.
    log2_sum = jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2_E)
    operands = (offset, segment_ids, q, k, v, d_out, log2_sum, delta)

    def in_specs(specs: _Specs) -> list[Any]:
        mask, sums = specs.mask(offset, segment_ids), specs.row_sums()
        return [*mask, specs.queries(), specs.keys(), specs.keys(), specs.queries(), sums, sums]

    block_q, block_k, params = _sizes(config, "dkv_")
    specs = _Specs(call, block_q, block_k, per_key_head=True)
    d_k, d_v = pl.pallas_call(
        partial(_dkv_kernel, call, block_q, block_k),
        out_shape=(jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        grid=(pl.cdiv(call.kv_len, block_k), call.num_kv_heads, call.batch),
        in_specs=in_specs(specs),
        out_specs=(specs.keys(), specs.keys()),
        compiler_params=params,
        interpret=interpret,
        name="attention_dkv",
    )(*operands)
    block_q, block_k, params = _sizes(config, "dq_")
    specs = _Specs(call, block_q, block_k, per_key_head=False)
    d_q = pl.pallas_call(
        partial(_dq_kernel, call, block_q, block_k),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(pl.cdiv(call.q_len, block_q), call.num_heads, call.batch),
        in_specs=in_specs(specs),
        out_specs=specs.queries(),
        compiler_params=params,
        interpret=interpret,
        name="attention_dq",
    )(*operands)
    return d_q, d_k, d_v, None, None


_attention.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Specs:
    """What of each array the program (block, head, batch) may reach: a head in whole length. The kernel takes its blocks
    out of it itself, since the mask says where they begin and how many there are.

    With `per_key_head`, the program's head is one of keys, and it reaches all query heads of its group.
    """

    call: Call
    block_q: int
    block_k: int
    per_key_head: bool

    def mask(self, q_offset: jax.Array | None, segment_ids: jax.Array | None) -> list[Any]:
        length = max(self.call.q_len, self.block_q, self.block_k)
        return [
            None if q_offset is None else pl.BlockSpec((1,), lambda block, head, batch: (0,)),
            None if segment_ids is None else pl.BlockSpec((None, length), lambda block, head, batch: (batch, 0)),
        ]

    def queries(self) -> Any:
        heads = self.call.group if self.per_key_head and self.call.group > 1 else None
        shape = (None, max(self.call.q_len, self.block_q), heads, _padded(self.call.head_dim))
        return pl.BlockSpec(shape, lambda block, head, batch: (batch, 0, head, 0))

    def keys(self) -> Any:
        per_program = 1 if self.per_key_head else self.call.group
        shape = (None, max(self.call.kv_len, self.block_k), None, _padded(self.call.head_dim))
        return pl.BlockSpec(shape, lambda block, head, batch: (batch, 0, head // per_program, 0))

    def row_sums(self) -> Any:
        heads = self.call.group if self.per_key_head and self.call.group > 1 else None
        shape = (None, heads, max(self.call.q_len, self.block_q))
        return pl.BlockSpec(shape, lambda block, head, batch: (batch, head, 0))


def _forward_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    offset_ref, ids, q, k, v, out, lse = refs
    offset = call.q_offset if offset_ref is None else offset_ref[0]
    q_start = _program(call) * block_q
    queries = _load(call, q, (), q_start, block_q, call.q_len)
    query_rows = _rows(ids, q_start, block_q, call.q_len, axis=0)

    def step(k_start: Any, carry: tuple[jax.Array, jax.Array, Parts], masked: bool) -> Any:
        top, total, weighted = carry
        length = call.kv_len if masked else None
        raw, factor = _raw_scores(call, _products(queries, _load(call, k, (), k_start, block_k, length)))
        if masked:
            seen = _seen(call, block_k, offset, query_rows, _rows(ids, k_start, block_k, call.kv_len, axis=1))
            raw = raw if seen is None else jnp.where(seen, raw, -jnp.inf)
        new_top = jnp.maximum(top, factor * jnp.max(raw, axis=1))
        # Of a row that has seen nothing yet: exp2(-inf - 0), not exp2(-inf + inf).
        base = jnp.where(new_top == -jnp.inf, 0.0, new_top) if masked else new_top
        p = jnp.exp2(factor * raw - base[:, None])
        decay = jnp.exp2(top - base)
        weighted = tuple(decay[:, None] * part for part in weighted)
        weighted = _add_products(weighted, p, _load(call, v, (), k_start, block_k, length))
        return new_top, decay * total + jnp.sum(p, axis=1), weighted

    carry = (jnp.full((block_q,), -jnp.inf, jnp.float32), jnp.zeros((block_q,), jnp.float32), _zeros(call, block_q))
    top, total, weighted = _walk(call, step, carry, _keys_seen(call, q_start + offset, block_q), call.kv_len, block_k)
    share = 1.0 / jnp.where(total == 0.0, 1.0, total)[:, None]
    _store(call, out, q_start, tuple(share * part for part in weighted), call.q_len)
    log_sum = top / LOG2_E + jnp.log(total)
    plgpu.store(lse.at[pl.ds(q_start, block_q)], log_sum, mask=_inside(q_start, block_q, call.q_len))


def _dkv_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    """Scores are `[keys, queries]` here: p and its gradient are then left operands, which may stay in registers."""
    offset_ref, ids, q, k, v, d_out, log2_sum, delta, d_k, d_v = refs
    offset = call.q_offset if offset_ref is None else offset_ref[0]
    k_start = pl.program_id(0) * block_k
    keys, values = (_load(call, ref, (), k_start, block_k, call.kv_len) for ref in (k, v))
    key_rows = _rows(ids, k_start, block_k, call.kv_len, axis=0)

    def step(head: tuple[Any, ...], q_start: Any, carry: tuple[Parts, Parts], masked: bool) -> tuple[Parts, Parts]:
        d_keys, d_values = carry
        length = call.q_len if masked else None
        queries, d_outs = (_load(call, ref, head, q_start, block_q, length) for ref in (q, d_out))
        log2_sums = _load_row(log2_sum, head, q_start, block_q, length, jnp.inf)[None, :]
        deltas = _load_row(delta, head, q_start, block_q, length, 0)[None, :]
        seen = None
        if masked:
            seen = _seen(call, block_k, offset, _rows(ids, q_start, block_q, call.q_len, axis=1), key_rows)
        p, slope = _weights(call, _products(keys, queries), log2_sums, seen)
        d_values = _add_products(d_values, p, d_outs)
        d_scores = p * (_products(values, d_outs) - deltas) * slope
        return _add_products(d_keys, d_scores, queries), d_values

    def walk_head(head: tuple[Any, ...], carry: tuple[Parts, Parts]) -> Any:
        seeing = _queries_seeing(call, k_start - offset, block_k)
        return _walk(call, partial(step, head), carry, seeing, call.q_len, block_q)

    carry = (_zeros(call, block_k), _zeros(call, block_k))
    if call.group == 1:
        carry = walk_head((), carry)
    else:
        carry = lax.fori_loop(0, call.group, lambda head, carry: walk_head((head,), carry), carry)
    d_keys, d_values = carry
    _store(call, d_k, k_start, tuple(call.scale * part for part in d_keys), call.kv_len)
    _store(call, d_v, k_start, d_values, call.kv_len)


def _dq_kernel(call: Call, block_q: int, block_k: int, *refs: Any) -> None:
    offset_ref, ids, q, k, v, d_out, log2_sum, delta, d_q = refs
    offset = call.q_offset if offset_ref is None else offset_ref[0]
    q_start = _program(call) * block_q
    queries, d_outs = (_load(call, ref, (), q_start, block_q, call.q_len) for ref in (q, d_out))
    log2_sums = _load_row(log2_sum, (), q_start, block_q, call.q_len, jnp.inf)[:, None]
    deltas = _load_row(delta, (), q_start, block_q, call.q_len, 0)[:, None]
    query_rows = _rows(ids, q_start, block_q, call.q_len, axis=0)

    def step(k_start: Any, d_queries: Parts, masked: bool) -> Parts:
        length = call.kv_len if masked else None
        keys, values = (_load(call, ref, (), k_start, block_k, length) for ref in (k, v))
        seen = None
        if masked:
            seen = _seen(call, block_k, offset, query_rows, _rows(ids, k_start, block_k, call.kv_len, axis=1))
        p, slope = _weights(call, _products(queries, keys), log2_sums, seen)
        d_scores = p * (_products(d_outs, values) - deltas) * slope
        return _add_products(d_queries, d_scores, keys)

    keys_seen = _keys_seen(call, q_start + offset, block_q)
    d_queries = _walk(call, step, _zeros(call, block_q), keys_seen, call.kv_len, block_k)
    _store(call, d_q, q_start, tuple(call.scale * part for part in d_queries), call.q_len)


# Which blocks a program visits.


def _program(call: Call) -> Any:
    """The block of queries of this program. Under a causal mask the last ones have the most keys, and begin first, so
    that short ones fill the gaps at the end."""
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
    """`step(start, carry, masked)` for each block of rows, masked where not all see all of it or the array ends in it."""

    def floor(row: Any) -> Any:
        return row // block if isinstance(row, int) else lax.div(jnp.clip(row, 0, length), block)

    def ceil(row: Any) -> Any:
        return pl.cdiv(row, block) if isinstance(row, int) else lax.div(jnp.clip(row, 0, length) + block - 1, block)

    def loop(first: Any, last: Any, carry: Any, masked: bool) -> Any:
        return lax.fori_loop(jnp.int32(first), jnp.int32(last), lambda i, x: step(i * block, x, masked), carry)

    first, last = floor(rows.start), ceil(rows.stop)
    # Two loops over parts, or three of any kind, would make Hopper wait for each product (ptxas says so, C7515). To mask
    # all costs less.
    if call.has_segments or call.window is not None or (call.causal and len(_parts(call.head_dim)) > 1):
        return loop(first, last, carry, masked=True)
    whole_first, whole_last = ceil(rows.whole[0]), floor(rows.whole[1])
    if not isinstance(whole_first, int):
        whole_first = jnp.minimum(whole_first, last)
        carry = loop(first, whole_first, carry, masked=True)
    if not isinstance(whole_last, int):
        whole_last = jnp.minimum(whole_last, last)
    carry = loop(whole_first, whole_last, carry, masked=False)
    ends_whole = isinstance(whole_last, int) and length % block == 0
    return carry if ends_whole else loop(jnp.maximum(whole_first, whole_last), last, carry, masked=True)


class _Rows(NamedTuple):
    """Indices of rows and their segments, if there are any, along one axis of a block of scores."""

    index: jax.Array
    segment: jax.Array | None


def _rows(ids: Any | None, start: Any, size: int, length: int, axis: int) -> _Rows:
    index = start + lax.iota(jnp.int32, size)
    segment = None if ids is None else _load_row(ids, (), start, size, length, 0)
    return _Rows(*(None if x is None else jnp.expand_dims(x, 1 - axis) for x in (index, segment)))


def _seen(call: Call, block_k: int, offset: Any, queries: _Rows, keys: _Rows) -> jax.Array | None:
    """Who sees whom, booleans that broadcast to the block's scores; None where all see all."""
    conditions = []
    if call.kv_len % block_k:
        conditions.append(keys.index < call.kv_len)
    if call.causal:
        conditions.append(keys.index <= queries.index + offset)
    if call.window is not None:
        conditions.append(keys.index > queries.index + (offset - call.window))
    if queries.segment is not None:
        conditions.append(queries.segment == keys.segment)
    return reduce(jnp.logical_and, conditions) if conditions else None


# Arithmetic on blocks.


def _raw_scores(call: Call, products: jax.Array) -> tuple[jax.Array, float]:
    """`raw` and a `factor` > 0 with factor * raw = score * log2(e).

    A positive factor may be applied after the maximum, in one instruction with the subtraction of it.
    """
    if call.logit_softcap is not None:
        return jnp.tanh(products * (call.scale / call.logit_softcap)), call.logit_softcap * LOG2_E
    if call.scale > 0:
        return products, call.scale * LOG2_E
    return products * call.scale, LOG2_E


def _weights(
    call: Call, products: jax.Array, log2_sum: jax.Array, seen: jax.Array | None
) -> tuple[jax.Array, jax.Array | float]:
    """p as the forward had it, and the slope of the soft-cap at each score."""
    raw, factor = _raw_scores(call, products)
    p = jnp.exp2(factor * raw - log2_sum)
    return p if seen is None else jnp.where(seen, p, 0.0), 1.0 if call.logit_softcap is None else 1.0 - raw * raw


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    # Without a word on precision, Triton rounds float32 to TF32.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _products(a: Parts, b: Parts) -> jax.Array:
    """Each row of a times each of b, `[rows of a, rows of b]`."""
    return reduce(jnp.add, (_dot(x, y, (1, 1)) for x, y in zip(a, b, strict=True)))


def _add_products(sums: Parts, weights: jax.Array, rows: Parts) -> Parts:
    """sums + weights @ rows, by parts."""
    return tuple(part + _dot(weights.astype(x.dtype), x, (1, 0)) for part, x in zip(sums, rows, strict=True))


# Rows of a head, in and out.


def _parts(head_dim: int) -> list[tuple[int, int]]:
    """(start, width) of the column blocks that cover head_dim: 96 is 64 + 32, 72 is 64 + 16 of which half is masked."""
    whole = max(pl.next_power_of_2(head_dim), SMALLEST_BLOCK)
    rest = head_dim - whole // 2
    narrow = max(pl.next_power_of_2(max(rest, 1)), SMALLEST_BLOCK)
    return [(0, whole // 2), (whole // 2, narrow)] if rest > 0 and narrow < whole // 2 else [(0, whole)]


def _padded(head_dim: int) -> int:
    return sum(width for _, width in _parts(head_dim))


def _zeros(call: Call, size: int) -> Parts:
    return tuple(jnp.zeros((size, width), jnp.float32) for _, width in _parts(call.head_dim))


def _inside(start: Any, size: int, length: int | None) -> jax.Array | None:
    """Which of the rows the array has; None where it has all because blocks divide it or `length` is not given."""
    return None if length is None or length % size == 0 else start + lax.iota(jnp.int32, size) < length


def _reach(call: Call, start: Any, size: int, length: int | None, column: int, width: int) -> jax.Array | None:
    """`_inside` for a part `[size, width]` of rows, whose columns may be beyond head_dim too."""
    reach = _inside(start, size, length)
    if reach is not None:
        reach = jnp.broadcast_to(reach[:, None], (size, width))
    if column + width > call.head_dim:
        columns = jnp.broadcast_to(column + lax.iota(jnp.int32, width) < call.head_dim, (size, width))
        reach = columns if reach is None else reach & columns
    return reach


def _load(call: Call, ref: Any, head: tuple[Any, ...], start: Any, size: int, length: int | None) -> Parts:
    """Rows of a head by parts, zero beyond the array's end; without `length` they are known to be inside."""
    parts = []
    for column, width in _parts(call.head_dim):
        reach = _reach(call, start, size, length, column, width)
        rows = ref.at[(pl.ds(start, size), *head, pl.ds(column, width))]
        parts.append(plgpu.load(rows, mask=reach, other=None if reach is None else 0.0))
    return tuple(parts)


def _load_row(ref: Any, index: tuple[Any, ...], start: Any, size: int, length: int | None, other: float) -> jax.Array:
    inside = _inside(start, size, length)
    return plgpu.load(ref.at[(*index, pl.ds(start, size))], mask=inside, other=None if inside is None else other)


def _store(call: Call, ref: Any, start: Any, parts: Parts, length: int) -> None:
    for (column, width), part in zip(_parts(call.head_dim), parts, strict=True):
        rows = ref.at[pl.ds(start, part.shape[0]), pl.ds(column, width)]
        plgpu.store(rows, part.astype(ref.dtype), mask=_reach(call, start, part.shape[0], length, column, width))


# What it takes, and how it runs.


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
    if 0 in (call.batch, call.q_len, call.kv_len, call.num_heads):
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """The first is the best guess; that they fit shared memory, nearly all without spilling registers, was compiled."""
    assert device.compute_capability is not None
    hopper = (9, 0) <= device.compute_capability < (12, 0)
    table = _FLOAT32 if call.dtype == "float32" else _HOPPER if hopper else _AMPERE
    rows = next(rows for head_dim, rows in table.items() if call.head_dim <= head_dim)
    # All others than these have 99 KiB of shared memory, for which the last row is.
    rows = rows if hopper or device.compute_capability == (8, 0) else rows[-1:]
    return list(dict.fromkeys(_config(call, row) for row in rows))


def _config(call: Call, row: tuple[tuple[int, int, int, int], ...]) -> Config:
    """Of a row of the tables, with blocks no longer than the lengths that they divide."""
    longest = [max(SMALLEST_BLOCK, pl.next_power_of_2(length)) for length in (call.q_len, call.kv_len)]
    config: list[tuple[str, int]] = []
    for kernel, (block_q, block_k, num_warps, num_stages) in zip(KERNELS, row, strict=True):
        values = (min(block_q, longest[0]), min(block_k, longest[1]), num_warps, num_stages)
        config += [(kernel + name, value) for name, value in zip(NAMES, values, strict=True)]
    return tuple(config)


def _sizes(config: Config, kernel: str) -> tuple[int, int, Any]:
    """block_q, block_k and the compiler's parameters of one of KERNELS."""
    block_q, block_k, num_warps, num_stages = (dict(config)[kernel + name] for name in NAMES)
    return block_q, block_k, plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages)


# For head_dim up to the key, from the best guess on: NAMES of the forward, of dk and dv, and of dq.
_HOPPER = {
    64: (
        ((128, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2)),
        ((128, 128, 8, 2), (64, 64, 4, 2), (128, 128, 8, 2)),
        ((64, 64, 4, 3), (64, 64, 8, 2), (64, 64, 4, 3)),
    ),
    128: (
        ((128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 3)),
        ((128, 64, 8, 3), (32, 128, 8, 3), (64, 64, 4, 2)),
        ((64, 64, 4, 2), (64, 64, 8, 2), (128, 64, 8, 2)),
    ),
    256: (
        ((128, 64, 8, 2), (32, 64, 8, 2), (64, 64, 8, 2)),
        ((64, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
    ),
}
_AMPERE = {
    64: (
        ((128, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2)),
        ((128, 128, 8, 2), (64, 64, 8, 2), (128, 32, 4, 3)),
        ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    ),
    128: (
        ((128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
        ((64, 64, 4, 2), (32, 128, 8, 3), (128, 64, 8, 3)),
        ((64, 32, 4, 2), (32, 64, 4, 2), (64, 32, 4, 2)),
    ),
    256: (
        ((64, 64, 8, 2), (64, 64, 8, 1), (64, 64, 8, 2)),
        ((128, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
        ((64, 32, 4, 2), (32, 32, 4, 1), (64, 32, 4, 2)),
    ),
}
# Without tensor cores, each thread holds rows of both operands: small blocks, many threads.
_FLOAT32 = {
    64: (
        ((64, 32, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
        ((32, 32, 8, 2), (32, 32, 8, 2), (32, 32, 8, 2)),
    ),
    128: (((32, 16, 8, 2), (16, 32, 8, 2), (32, 16, 8, 2)),),
    256: (
        ((32, 32, 8, 2), (16, 32, 8, 2), (32, 32, 8, 2)),
        ((32, 16, 8, 1), (16, 32, 8, 1), (32, 16, 8, 1)),
    ),
}
