"""Attention over pages on NVIDIA GPUs as Pallas kernels that Triton compiles: flash-decoding (Dao et al. 2023).

One query a row is little work for a GPU unless the row's keys are shared out among many programs. Each of them walks
over its part of the keys that the query sees, keeps the highest score so far, the sum of the weights relative to it and
the weighted sum of the values, for all query heads that share the keys, and a second kernel combines the parts. Which
part is whose follows from the row's length, so that a short row is shared out as evenly as a long one.

Pages are read where they lie: the kernel looks each key's page up, and reads neither keys nor entries of the table that
the query does not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels import implementations
from jax_kernels._ops.decode_attention.call import Call
from jax_kernels._ops.decode_attention.reference import Pair, with_gradient
from jax_kernels.implementations import Config, Device

LOG2_E = math.log2(math.e)
NAMES = ("block_k", "parts", "num_warps", "num_stages")
LONGEST_BLOCK = 256
SMALLEST_BLOCK = 16  # the smallest side of a product that tensor cores take
MANY_PROGRAMS = 4 * 132  # a few for each multiprocessor of an H100, so that the last of them to end are short
SHORTEST_PART = 128  # keys, below which programs begin and end more than they work


@with_gradient
def decode_attention(
    call: Call,
    config: Config,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
) -> Pair:
    """Out as q `[batch, num_heads, head_dim]`, log-sum-exp `[batch, num_heads]` float32."""
    block_k, parts, num_warps, num_stages = (dict(config)[name] for name in NAMES)
    rows = call.batch * call.num_heads
    kernel = partial(_part_kernel, call, block_k, parts)
    grid = (parts, call.num_kv_heads * _head_blocks(call), call.batch)
    shape = jax.ShapeDtypeStruct((parts * rows, call.head_dim), q.dtype if parts == 1 else jnp.float32)
    arrays = (x.reshape(-1, call.head_dim) for x in (q, k_pages, v_pages))
    out, lse = _run(kernel, "", grid, shape, num_warps, num_stages, *arrays, page_table, lengths)
    if parts > 1:
        shape = jax.ShapeDtypeStruct((rows, call.head_dim), q.dtype)
        out, lse = _run(partial(_combine_kernel, call, parts), "_combine", (rows,), shape, 4, 1, out, lse)
    return out.reshape(q.shape), lse.reshape(call.batch, call.num_heads)


def _run(
    kernel: Any, name: str, grid: tuple[int, ...], shape: Any, num_warps: int, num_stages: int, *operands: Any
) -> Any:
    """A kernel's output, of `shape` `[rows, head_dim]`, and the log-sum-exp `[rows]`."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=[shape, jax.ShapeDtypeStruct(shape.shape[:1], jnp.float32)],
        # Parameters of Triton's also choose Triton, which is not each JAX version's default on a GPU.
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        interpret=implementations.is_interpreting(),
        name=f"decode_attention{name}",
    )(*operands)


def _part_kernel(call: Call, block_k: int, parts: int, *refs: Any) -> None:
    """One part of a row's keys, for query heads that share them."""
    q, k_pages, v_pages, page_table, lengths, out, lse = refs
    part, head_block, batch = (pl.program_id(axis) for axis in range(3))
    kv_head, block_h = lax.div(head_block, _head_blocks(call)), _block_h(call)
    member = lax.rem(head_block, _head_blocks(call)) * block_h + lax.iota(jnp.int32, block_h)
    is_head = member < call.group
    heads = batch * call.num_heads + kv_head * call.group + member
    queries = _load(call, q, heads, is_head)

    start, stop = call.keys_seen(lengths[batch])
    first, last = lax.div(jnp.int32(start), block_k), lax.div(stop + (block_k - 1), block_k)
    share = lax.div(last - first + (parts - 1), parts)
    first = first + part * share
    last = jnp.minimum(first + share, last)

    def step(block: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, weighted = carry
        position = block * block_k + lax.iota(jnp.int32, block_k)
        seen = (position >= start) & (position < stop)
        page = plgpu.load(page_table.at[batch, lax.div(position, call.page_size)], mask=seen, other=0)
        page = kv_head * call.num_pages + jnp.clip(page, 0, call.num_pages - 1)
        tokens = page * call.page_size + lax.rem(position, call.page_size)
        keys = _load(call, k_pages, tokens, seen)
        scores = jnp.where(seen[None, :], _scores(call, _dot(queries, keys, (1, 1))), -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))  # finite: each block has a key that is seen
        p, decay = jnp.exp2(scores - new_top[:, None]), jnp.exp2(top - new_top)
        values = _load(call, v_pages, tokens, seen)
        weighted = decay[:, None] * weighted + _dot(p.astype(values.dtype), values, (1, 0))
        return new_top, decay * total + jnp.sum(p, axis=1), weighted

    top, total = jnp.full(block_h, -jnp.inf, jnp.float32), jnp.zeros(block_h, jnp.float32)
    carry = (top, total, jnp.zeros(queries.shape, jnp.float32))
    top, total, weighted = lax.fori_loop(first, last, step, carry)
    rows = part * (call.batch * call.num_heads) + heads
    _store(call, out, rows, is_head, weighted / jnp.where(total == 0.0, 1.0, total)[:, None])
    plgpu.store(lse.at[rows], top / LOG2_E + jnp.log(total), mask=is_head)


def _combine_kernel(call: Call, parts: int, part_out: Any, part_lse: Any, out: Any, lse: Any) -> None:
    """A query head's parts, each weighted by its share of the sum of exponentials."""
    row = pl.program_id(0)
    part = lax.iota(jnp.int32, pl.next_power_of_2(parts))
    rows, exists = part * (call.batch * call.num_heads) + row, part < parts
    sums = plgpu.load(part_lse.at[rows], mask=exists, other=-jnp.inf)
    top = jnp.max(sums)
    weights = jnp.exp(sums - jnp.where(top == -jnp.inf, 0.0, top))
    total = jnp.sum(weights)
    outs = _load(call, part_out, rows, exists)
    combined = jnp.sum(weights[:, None] * outs, axis=0) / jnp.where(total == 0.0, 1.0, total)
    _store(call, out, row + lax.iota(jnp.int32, 1), jnp.full(1, True), combined[None])
    lse[row] = top + jnp.log(total)


def _scores(call: Call, products: jax.Array) -> jax.Array:
    """In units of log 2, whose powers the GPU computes itself."""
    if call.logit_softcap is None:
        return products * (call.scale * LOG2_E)
    return jnp.tanh(products * (call.scale / call.logit_softcap)) * (call.logit_softcap * LOG2_E)


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    # Without a word on precision, Triton rounds float32 to TF32.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _most_heads(call: Call) -> int:
    """Query heads in one program. A larger group is cut, and its keys are read for each piece; more would spill."""
    return 16 if call.dtype == "float32" else 64 if call.head_dim <= 128 else 32


def _head_blocks(call: Call) -> int:
    """Programs among which the query heads of a group are shared out."""
    return pl.cdiv(call.group, _most_heads(call))


def _block_h(call: Call) -> int:
    return max(pl.next_power_of_2(min(call.group, _most_heads(call))), SMALLEST_BLOCK)


def _reach(call: Call, rows: jax.Array, mask: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Indices of rows of head_dim, in a block whose sides are powers of two, and which of them there are."""
    shape = (rows.shape[0], max(pl.next_power_of_2(call.head_dim), SMALLEST_BLOCK))
    columns = lax.broadcasted_iota(jnp.int32, shape, 1)
    mask = jnp.broadcast_to(mask[:, None], shape)
    return (jnp.broadcast_to(rows[:, None], shape), columns), mask & (columns < call.head_dim)


def _load(call: Call, ref: Any, rows: jax.Array, mask: jax.Array) -> jax.Array:
    """Rows of an array `[rows, head_dim]`; zeros where the mask has none."""
    at, mask = _reach(call, rows, mask)
    return plgpu.load(ref.at[at], mask=mask, other=0)


def _store(call: Call, ref: Any, rows: jax.Array, mask: jax.Array, values: jax.Array) -> None:
    at, mask = _reach(call, rows, mask)
    plgpu.store(ref.at[at], values.astype(ref.dtype), mask=mask)


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "needs an NVIDIA GPU"
    if device.compute_capability < (8, 0):
        return "needs compute capability 8.0"
    if call.dtype not in ("float16", "bfloat16", "float32"):
        return call.dtype
    if call.head_dim > 256:
        return f"head_dim {call.head_dim} is more than 256"
    if 0 in (call.batch, call.num_heads, call.head_dim):
        return "an empty array"
    if call.num_kv_heads * call.num_pages * call.page_size > 2**31:
        return "more tokens in all heads than 32 bits count"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Parts of rows to try, the best guess first: as many as fill the device, few shorter than SHORTEST_PART."""
    assert device.compute_capability is not None
    seen = min(call.capacity, call.window or call.capacity)
    programs = call.batch * call.num_kv_heads * _head_blocks(call)
    enough, most = pl.cdiv(MANY_PROGRAMS, programs), pl.cdiv(seen, SHORTEST_PART)
    key_bytes = pl.next_power_of_2(call.head_dim) * jnp.dtype(call.dtype).itemsize
    # Others have 99 KiB of shared memory rather than 163 or 227.
    has_room = device.compute_capability == (8, 0) or (9, 0) <= device.compute_capability < (12, 0)
    found = []
    for block_bytes, share, num_warps, num_stages in _BLOCKS if has_room else _BLOCKS[:-1]:
        block_k = min(max(block_bytes // key_bytes, SMALLEST_BLOCK), LONGEST_BLOCK)
        parts = pl.next_power_of_2(max(1, min(enough, most) // share))
        found.append(tuple(zip(NAMES, (block_k, parts, num_warps, num_stages), strict=True)))
    return list(dict.fromkeys(found))


# Bytes of a block of keys, what to divide the number of parts by, warps and stages. Ordered by reasoning, not timed.
# The table is read stages ahead of the keys that it names: as compiled, 5 bring a block while one is computed, and 3
# bring one between two, so that other programs of the multiprocessor have to fill the time.
_BLOCKS = ((2**14, 1, 4, 5), (2**14, 1, 4, 3), (2**14, 2, 4, 5), (2**13, 1, 4, 5), (2**15, 1, 8, 3))
