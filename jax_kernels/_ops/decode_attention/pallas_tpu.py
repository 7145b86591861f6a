"""Attention over pages for TPUs: a Pallas kernel that copies a row's pages into VMEM a block ahead of their use.

A step of the grid is a row of the batch for some of its key heads, and walks over the blocks of pages that the query
sees. One copy brings a page of all those heads. While a block is computed the next is on its way, that of the next row
too, and a page that the query does not see is neither copied nor are its keys stepped over.

Softmax is online: the maximum and sum so far stand in all lanes of a query head's row.

The kernel reads pages whose head_dim lies along the lanes. XLA lays arrays out so by itself where head_dim is 128 or
more; below, it may lay page numbers there, and then copies all of the pages at each call, unless the program's
arguments are given the kernel's layout (`jax.experimental.layout.Format`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_kernels._ops.decode_attention.call import Call
from jax_kernels._ops.decode_attention.reference import Pair, with_gradient
from jax_kernels.implementations import Config, Device, is_interpreting

Ref: TypeAlias = Any

LANES = 128
VMEM_LIMIT_BYTES = 48 * 2**20  # a v5p core has 64 MiB, v5e and v6e 128; a kernel gets 16 unless it asks
BLOCK_BYTES = 2**21  # of keys, as many of values, and twice that for the next block
MOST_PAGES = 2**17  # entries of the page table, 4 bytes each, of 1 MiB of scalar memory
LOG2E = math.log2(math.e)  # the hardware's exponential is a power of 2
# The maximum of no scores: finite, so that a hidden score, -inf, less any maximum is -inf and never NaN.
FLOOR = float(np.finfo(np.float32).min) / 2


def unsupported_reason(call: Call, device: Device) -> str | None:
    if device.platform != "tpu" or any(old in device.kind for old in ("v2", "v3", "v4")):
        return "needs a TPU v5 or later"
    if call.dtype not in ("bfloat16", "float32"):
        return call.dtype
    if 0 in (call.batch, call.num_heads, call.head_dim):
        return "an empty array"
    if call.page_size % _sublanes(call):
        return f"pages of {call.page_size} tokens are not whole tiles of {_sublanes(call)}"
    if call.batch * call.pages_per_row > MOST_PAGES:
        return "a page table too large for scalar memory"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Key heads of a step and keys of a block, ordered by reasoning: nothing was measured."""
    cores = 2 if "v5" in device.kind and "lite" not in device.kind else 1  # which share out the key heads
    found = []
    for block_k in (512, 256, 1024):
        pages = min(max(block_k // call.page_size, 1), call.pages_per_row)
        most = BLOCK_BYTES // (pages * _page_bytes(call))
        heads = [n for n in range(1, call.num_kv_heads + 1) if call.num_kv_heads % n == 0 and n <= max(1, most)]
        shared = [n for n in heads if call.num_kv_heads // n % cores == 0]
        found.append((("heads", (shared or heads)[-1]), ("pages", pages)))
    return list(dict.fromkeys(found))


@with_gradient
def decode_attention(
    call: Call, config: Config, q: Array, k_pages: Array, v_pages: Array, page_table: Array, lengths: Array
) -> Pair:
    """Out as q `[batch, num_heads, head_dim]`, log-sum-exp `[batch, num_heads]` float32."""
    plan = Plan(call, **dict(config))
    queries = q.reshape(call.batch, call.num_kv_heads, call.group, call.head_dim)
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, plan.rows - call.group), (0, 0)))
    out, lse = plan.run(queries, k_pages, v_pages, page_table, lengths)
    return out[:, :, : call.group].reshape(q.shape), lse[:, :, : call.group, 0].reshape(call.batch, call.num_heads)


def _sublanes(call: Call) -> int:
    """Rows of a tile of the call's dtype."""
    return 32 // jnp.dtype(call.dtype).itemsize


def _page_bytes(call: Call) -> int:
    """Bytes of a page of one head in VMEM."""
    return call.page_size * pl.cdiv(call.head_dim, LANES) * LANES * jnp.dtype(call.dtype).itemsize


@dataclass(frozen=True)
class Plan:
    """The blocks of a call: each is `pages` pages of `heads` key heads."""

    call: Call
    heads: int
    pages: int

    @property
    def rows(self) -> int:
        """Query heads that share a key head, in whole tiles."""
        return pl.cdiv(self.call.group, _sublanes(self.call)) * _sublanes(self.call)

    @property
    def block_k(self) -> int:
        return self.pages * self.call.page_size

    def run(self, q: Array, k_pages: Array, v_pages: Array, page_table: Array, lengths: Array) -> Any:
        """Out as q `[batch, num_kv_heads, rows, head_dim]`, log-sum-exp in all lanes of `[..., rows, LANES]`."""
        call, lse_shape = self.call, (*q.shape[:-1], LANES)
        wide, narrow = ((self.heads, self.rows, width) for width in (call.head_dim, LANES))
        buffer = pltpu.VMEM((2, self.heads, self.pages, call.page_size, call.head_dim), k_pages.dtype)

        def index(head: Any, row: Any, *prefetched: Ref) -> tuple[Any, ...]:
            return row, head, 0, 0

        return pl.pallas_call(
            partial(_kernel, self),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(call.num_kv_heads // self.heads, call.batch),
                in_specs=[pl.BlockSpec((None, *wide), index), *[pl.BlockSpec(memory_space=pl.ANY)] * 2],
                out_specs=[pl.BlockSpec((None, *shape), index) for shape in (wide, narrow)],
                scratch_shapes=[
                    buffer,
                    buffer,
                    pltpu.SemaphoreType.DMA((2, 2)),
                    pltpu.SMEM((1,), jnp.int32),
                    *(pltpu.VMEM(shape, jnp.float32) for shape in (narrow, narrow, wide)),
                ],
            ),
            out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(lse_shape, jnp.float32)],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"),
                vmem_limit_bytes=VMEM_LIMIT_BYTES,
                # They take half of the time of starting a copy; pages are clipped to those that exist.
                disable_bounds_checks=True,
            ),
            interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
            name="decode_attention",
        )(page_table.reshape(-1), lengths, q, k_pages, v_pages)


class Fetch:
    """Inside the kernel: which blocks a row has, and their way into VMEM."""

    def __init__(self, plan: Plan, page_table: Ref, lengths: Ref, pages: Pair, buffers: Pair, arrived: Ref) -> None:
        self.plan, self.call, self.page_table, self.lengths = plan, plan.call, page_table, lengths
        self.pages, self.buffers, self.arrived = pages, buffers, arrived
        self.heads = pl.ds(pl.program_id(0) * plan.heads, plan.heads)

    def blocks(self, row: Any) -> tuple[Any, Any]:
        """First and one past the last; a row that sees nothing has one all the same, of no pages."""
        first, last = self._cover(row, self.plan.block_k)
        return first, jnp.maximum(last, first + 1)

    def start(self, row: Any, block: Any, half: Any) -> None:
        """Have a block's pages copied into half of the buffers."""
        self._each_page(row, block, half, lambda copy: copy.start())

    def wait(self, row: Any, block: Any, half: Any) -> None:
        self._each_page(row, block, half, lambda copy: copy.wait())

    def wait_for_all(self, half: Any) -> None:
        """The same for a block of which the query sees every page, at once: by the bytes of all."""
        for which, buffer in enumerate(self.buffers):
            pltpu.make_async_copy(buffer.at[half], buffer.at[half], self.arrived.at[half, which]).wait()

    def _cover(self, row: Any, size: int) -> tuple[Any, Any]:
        """First and one past the last of the pieces of so many keys that hold what the row's query sees."""
        start, stop = self.call.keys_seen(self.lengths[row])
        return lax.div(jnp.int32(start), size), lax.div(stop + (size - 1), size)

    def _each_page(self, row: Any, block: Any, half: Any, act: Callable[[Any], None]) -> None:
        begin = block * self.plan.pages
        first, last = self._cover(row, self.call.page_size)

        def page(at: Any, _: None) -> None:
            index = jnp.clip(self.page_table[row * self.call.pages_per_row + at], 0, self.call.num_pages - 1)
            for which, (pages, buffer) in enumerate(zip(self.pages, self.buffers, strict=True)):
                source, target = pages.at[self.heads, index], buffer.at[half, :, at - begin]
                act(pltpu.make_async_copy(source, target, self.arrived.at[half, which]))

        lax.fori_loop(jnp.maximum(first, begin), jnp.minimum(last, begin + self.plan.pages), page, None)


def _kernel(plan: Plan, *refs: Ref) -> None:
    """`turn` counts blocks: its parity is the half of the buffers that holds the one that comes next."""
    page_table, lengths, q, k_pages, v_pages, out, lse, k_buffer, v_buffer, arrived, turn, *sums = refs
    fetch = Fetch(plan, page_table, lengths, (k_pages, v_pages), (k_buffer, v_buffer), arrived)
    row, num_rows = pl.program_id(1), plan.call.batch

    @pl.when(row == 0)
    def fetch_first() -> None:
        turn[0] = 0
        fetch.start(row, fetch.blocks(row)[0], 0)

    top, total, weighted = sums
    top[...] = jnp.full_like(top, FLOOR)
    total[...] = jnp.zeros_like(total)
    weighted[...] = jnp.zeros_like(weighted)
    start, stop = plan.call.keys_seen(lengths[row])
    first, last = fetch.blocks(row)

    def step(block: Any, _: None) -> None:
        half = turn[0] & 1
        turn[0] += 1
        ends = block + 1 == last
        following = row + ends.astype(jnp.int32)

        @pl.when(following < num_rows)
        def fetch_next() -> None:
            fetch.start(following, jnp.where(ends, fetch.blocks(following)[0], block + 1), 1 - half)

        begin = block * plan.block_k
        whole = (begin >= start) & (begin + plan.block_k <= stop)
        attend = partial(_attend, plan, q, k_buffer.at[half], v_buffer.at[half], sums)

        @pl.when(whole)
        def attend_whole() -> None:
            fetch.wait_for_all(half)
            attend(None)

        @pl.when(~whole)
        def attend_edge() -> None:
            fetch.wait(row, block, half)
            attend((start - begin, stop - begin))

    lax.fori_loop(first, last, step, None)
    safe = jnp.where(total[...] == 0.0, 1.0, total[...])  # 0 where the row sees nothing
    out[...] = (weighted[...] * _across(1.0 / safe, plan.call.head_dim)).astype(out.dtype)
    lse[...] = jnp.where(total[...] == 0.0, -jnp.inf, top[...] / LOG2E + jnp.log(safe))


def _attend(plan: Plan, q: Ref, keys: Ref, values: Ref, sums: Sequence[Ref], seen: tuple[Any, Any] | None) -> None:
    """Adds a block to the sums of each query head; of its keys, those in `seen` count, or all."""
    call, (top, total, weighted) = plan.call, sums
    for head in range(plan.heads):
        k, v = (x[head].reshape(plan.block_k, call.head_dim) for x in (keys, values))
        scores = _scores(call, _dot(q[head], k, 1))
        if seen is not None:
            scores = jnp.where(_between(seen, scores.shape, 1), scores, -jnp.inf)
            v = jnp.where(_between(seen, v.shape, 0), v, jnp.zeros_like(v))  # it may be NaN, and 0 * NaN is NaN
        before = top[head]
        now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        p, shrink = jnp.exp2(scores - _across(now, plan.block_k)), jnp.exp2(before - now)
        top[head] = now
        total[head] = shrink * total[head] + jnp.sum(p, axis=1, keepdims=True)
        weighted[head] = _across(shrink, call.head_dim) * weighted[head] + _dot(p.astype(v.dtype), v, 0)


def _between(seen: tuple[Any, Any], shape: tuple[int, ...], axis: int) -> Array:
    key = lax.broadcasted_iota(jnp.int32, shape, axis)
    return jnp.logical_and(key >= seen[0], key < seen[1])


def _scores(call: Call, products: Array) -> Array:
    """In units of log 2."""
    if call.logit_softcap is None:
        return products * (call.scale * LOG2E)
    return jnp.tanh(products * (call.scale / call.logit_softcap)) * (call.logit_softcap * LOG2E)


def _across(x: Array, width: int) -> Array:
    """A number of each row that stands in all lanes, over more or fewer of them."""
    tiles = (1,) * (x.ndim - 1) + (pl.cdiv(width, LANES),)
    across: Array = jnp.tile(x, tiles)[..., :width]
    return across


def _dot(a: Array, b: Array, b_axis: int) -> Array:
    """float32, of `a`'s last axis with `b_axis`. Unless told, the units round float32 operands to bfloat16."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((1,), (b_axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
