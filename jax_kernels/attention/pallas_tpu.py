"""Attention for TPUs: Pallas kernels that hold a block of queries against one block of keys after another.

Scores live in VMEM, a piece at a time. The forward kernel keeps the maximum, sum and weighted values of its queries so
far (the online softmax) and writes them once. The backward recomputes the probabilities from the log-sum-exp, in one
kernel for the gradient of queries and one for that of keys and values, which also sums over the heads of a group.

The mask is turned into a list of the pairs of blocks to visit (`Plan.visits`), which the last part of each grid walks:
pairs that it hides are not in the list, so they are neither fetched nor stepped over, and those where all see all are
computed without it. Where it is known only when the program runs (a traced offset, segment ids), so is the grid's size.

The vector registers, 8 rows of 128 lanes, decide the layouts. Scores are `[queries, keys]` in the forward and in the
kernel for queries, where a number of each query, such as its maximum, stands in all lanes of its row; `[keys, queries]`
in the kernel for keys, where such numbers lie along the lanes. So no product needs a block of scores transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_kernels.attention.call import Call
from jax_kernels.forms import Config, Device, is_interpreting

Ref: TypeAlias = Any
Pair: TypeAlias = tuple[Array, Array]
Seeing: TypeAlias = tuple[Array | None, Array | None]  # what the mask waits for: the offset if traced, segment ids
Arrays: TypeAlias = Sequence[tuple[str, Any]]  # arrays, or their dtypes, each with its kind

AXES = {
    "queries": ("batch", "head", "q", "head_dim"),
    "keys": ("batch", "kv_head", "k", "head_dim"),
    "numbers": ("batch", "head", "one", "q"),  # one of each query
    "q_column": ("batch", "q", "lanes"),  # segment ids along the first axis of a block of scores
    "k_column": ("batch", "k", "lanes"),
    "q_row": ("batch", "one", "q"),  # and along the second
    "k_row": ("batch", "one", "k"),
}

LANES = 128
PIECE = 512  # keys whose scores are held at once: one piece's products overlap with the exponentials of another
VMEM_LIMIT_BYTES = 48 * 2**20  # a v5p core has 64 MiB, v5e and v6e 128; a kernel gets 16 unless it asks
MOST_VISITS = 2**17  # 4 bytes each, of 1 MiB of scalar memory
LOG2E = math.log2(math.e)  # the hardware's exponential is a power of 2
# The maximum of no scores: finite, so that a hidden score, -inf, less any maximum is -inf and never NaN.
FLOOR = float(np.finfo(np.float32).min) / 2

# A visit is an int32: block of queries, block of keys, and what there is to do.
BLOCK_BITS, WORK_BITS = 13, 4
FIRST, LAST, WHOLE, PARTLY = 1, 2, 4, 8


def refuses(call: Call, device: Device) -> str | None:
    if device.platform != "tpu" or any(old in device.kind for old in ("v2", "v3", "v4")):
        return "needs a TPU v5 or later"
    if call.dtype not in ("bfloat16", "float16", "float32"):
        return call.dtype
    if call.is_empty:
        return "an empty array"
    if call.head_dim > 512:
        return f"head_dim {call.head_dim} is more than 512"
    return None if configs(call, device) else "too many blocks for scalar memory"


def configs(call: Call, device: Device) -> Sequence[Config]:
    """A large block is scheduled best, and a visit costs some 150 cycles beyond its work; but blocks on the edge of a
    mask are computed whole. The order is that of cycles counted in compiled kernels; nothing was measured."""
    sizes = [(1024, 1024), (512, 512), (512, 1024), (256, 512), (128, 128)]
    if call.dtype != "bfloat16" or call.head_dim > 256:  # larger blocks take a minute to compile
        sizes = [(512, 512), (256, 512), (128, 128)]
    elif call.window is not None or (call.causal and call.q_len <= 4096 and "v6" not in device.kind):
        sizes[:2] = sizes[1::-1]
    most = MOST_VISITS // (call.batch if call.has_segments else 1)
    blocks = dict.fromkeys((_fit(call.q_len, q), _fit(call.kv_len, k)) for q, k in sizes)
    counts = {(q, k): (pl.cdiv(call.q_len, q), pl.cdiv(call.kv_len, k)) for q, k in blocks}
    few = [sizes for sizes, (m, n) in counts.items() if m * n <= most and max(m, n) <= 2**BLOCK_BITS]
    return tuple((("block_q", q), ("block_k", k)) for q, k in few)


def _fit(length: int, most: int) -> int:
    """The multiple of the lanes, up to `most`, that covers the length in as few blocks with the least padding."""
    return pl.cdiv(pl.cdiv(length, pl.cdiv(length, most)), LANES) * LANES


def attention(
    call: Call, config: Config, q: Array, k: Array, v: Array, q_offset: Array | None, segment_ids: Array | None
) -> Pair:
    """Out as q `[batch, q_len, num_heads, head_dim]`, log-sum-exp `[batch, num_heads, q_len]` float32."""
    # The matrix units have no float16, and bfloat16 would lose three of its bits.
    dtype = jnp.float32 if q.dtype == jnp.float16 else q.dtype
    queries, keys, values = (x.astype(dtype).transpose(0, 2, 1, 3) for x in (q, k, v))
    ids = None if segment_ids is None else segment_ids.astype(jnp.int32)
    out, lse = _attention(call, config, queries, keys, values, (q_offset, ids))
    return out.transpose(0, 2, 1, 3).astype(q.dtype), lse


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(call: Call, config: Config, q: Array, k: Array, v: Array, seeing: Seeing) -> Pair:
    """q `[batch, num_heads, q_len, head_dim]`, k and v `[batch, num_kv_heads, kv_len, head_dim]`; out as q."""
    return _forward(call, config, q, k, v, seeing)[0]


def _forward(call: Call, config: Config, q: Array, k: Array, v: Array, seeing: Seeing) -> tuple[Pair, Any]:
    plan = Plan(call, dict(config)["block_q"], dict(config)["block_k"])
    operands, outputs = [("queries", q), ("keys", k), ("keys", v)], [("queries", q.dtype), ("numbers", jnp.float32)]
    scratch = [(plan.block_q, LANES), (plan.block_q, LANES), (plan.block_q, call.head_dim)]
    out, lse = plan.run(_forward_kernel, seeing, operands, outputs, scratch)
    return (out, lse[:, :, 0]), (q, k, v, seeing, out, lse[:, :, 0])


def _backward(call: Call, config: Config, residuals: Any, cotangents: Pair) -> tuple[Any, ...]:
    (q, k, v, seeing, out, lse), (d_out, d_lse) = residuals, cotangents
    # Each score's gradient is p (dp - delta), and the log-sum-exp's own gradient adds p d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1) - d_lse
    lse2 = LOG2E * jnp.where(jnp.isneginf(lse), 0.0, lse)
    operands = [("queries", q), ("keys", k), ("keys", v), ("queries", d_out)]
    operands += [("numbers", lse2[:, :, None]), ("numbers", delta[:, :, None])]
    plan = Plan(call, dict(config)["block_q"], dict(config)["block_k"])
    scratch = [(plan.block_q, LANES), (plan.block_q, LANES), (plan.block_q, call.head_dim)]
    (d_q,) = plan.run(_queries_kernel, seeing, operands, [("queries", q.dtype)], scratch)
    outputs, scratch = [("keys", k.dtype), ("keys", v.dtype)], [(plan.block_k, call.head_dim)] * 2
    d_k, d_v = replace(plan, keys_outer=True).run(_keys_kernel, seeing, operands, outputs, scratch)
    return d_q, d_k, d_v, None


_attention.defvjp(_forward, _backward)


@dataclass(frozen=True)
class Plan:
    """How a kernel covers the scores: for each block of queries the blocks of keys, or the other way around.

    The grid is (batch, kv head, query head of its group, visit), the last two swapped where blocks of keys are outer.
    """

    call: Call
    block_q: int
    block_k: int
    keys_outer: bool = False

    @property
    def padded(self) -> tuple[int, int]:
        """Lengths of queries and keys in whole blocks. The added queries need no mask: their output is cut off, and
        with a gradient of zeros they add nothing to that of the keys."""
        return self.call.q_len + -self.call.q_len % self.block_q, self.call.kv_len + -self.call.kv_len % self.block_k

    def visits(self, q_offset: int | Array, segment_ids: Array | None) -> tuple[Array, int | Array]:
        """What to visit in which order, `[batch * visits]` int32, or `[visits]` without segment ids, which differ by
        row of the batch; and the visits that the longest row makes."""
        sight = self._sight(q_offset, segment_ids)
        xp: Any = np if isinstance(sight, np.ndarray) else jnp
        sight = sight.swapaxes(-1, -2) if self.keys_outer else sight
        rows, num_outer, num_inner = sight.shape
        # What sees nothing, or is seen by nothing, is visited once all the same: zeros are to be written there.
        kept = (sight > 0) | (~sight.any(-1, keepdims=True) & (np.arange(num_inner) == 0))
        sight, kept = (x.reshape(rows, num_outer * num_inner) for x in (sight, kept))
        count = kept.sum(-1, keepdims=True)
        at = np.arange(int(count.max()) if xp is np else num_outer * num_inner)
        # Those kept, in order; then the last of them over and over, so that nothing more is fetched.
        pair = xp.take_along_axis(xp.argsort(~kept, axis=-1, stable=True), xp.minimum(at, count - 1), axis=-1)
        outer, inner = pair // num_inner, pair % num_inner
        new, edge = outer[:, 1:] != outer[:, :-1], np.ones((rows, 1), bool)
        first, last = xp.concatenate([edge, new], -1), xp.concatenate([new, edge], -1) | (at == count - 1)
        todo = xp.take_along_axis(sight, pair, axis=-1) | FIRST * first | LAST * last
        q, k = (inner, outer) if self.keys_outer else (outer, inner)
        visits = (q << BLOCK_BITS | k) << WORK_BITS | xp.where(at < count, todo, 0)
        return jnp.asarray(visits, jnp.int32).reshape(-1), len(at) if xp is np else count.max().astype(jnp.int32)

    def _sight(self, q_offset: int | Array, segment_ids: Array | None) -> Any:
        """What a mask leaves of each block of scores: WHOLE, PARTLY or 0, `[1 or batch, q blocks, k blocks]`."""
        call, (q_padded, k_padded) = self.call, self.padded
        q_first, k_first = np.arange(0, q_padded, self.block_q)[:, None], np.arange(0, k_padded, self.block_k)
        q_last = np.minimum(q_first + self.block_q, call.q_len) - 1
        k_last = np.minimum(k_first + self.block_k, call.kv_len) - 1
        least, most = q_first + q_offset - k_last, q_last + q_offset - k_first  # positions from a key to a query
        some: Any = np.ones((1, len(q_first), len(k_first)), bool)
        every = some & (k_first + self.block_k <= call.kv_len)
        if call.causal:
            some, every = some & (most >= 0), every & (least >= 0)
        if call.window is not None:
            some, every = some & (least < call.window), every & (most < call.window)
        if segment_ids is not None:
            q_low, q_high = (x[:, :, None] for x in _extremes(segment_ids, self.block_q))
            k_low, k_high = (x[:, None, :] for x in _extremes(segment_ids, self.block_k))
            some, every = some & (q_low <= k_high) & (k_low <= q_high), every & (q_low == k_high) & (q_high == k_low)
        return WHOLE * every | PARTLY * (some & ~every)

    def read(self, visits: Ref, batch: Any, at: Any) -> tuple[Any, Any, Any]:
        """The block of queries, that of keys, and what to do."""
        row = batch * (visits.shape[0] // self.call.batch) if self.call.has_segments else 0
        visit = visits[row + at]
        blocks, todo = visit >> WORK_BITS, visit & (1 << WORK_BITS) - 1
        return blocks >> BLOCK_BITS, blocks & (1 << BLOCK_BITS) - 1, todo

    def shape(self, kind: str, q_len: int, kv_len: int) -> tuple[int, ...]:
        call = self.call
        sizes = {"batch": call.batch, "head": call.num_heads, "kv_head": call.num_kv_heads, "q": q_len, "k": kv_len}
        sizes |= {"head_dim": call.head_dim, "lanes": LANES, "one": 1}
        return tuple(sizes[axis] for axis in AXES[kind])

    def spec(self, kind: str) -> pl.BlockSpec:
        """The block of an array that a step of the grid is given."""

        def index(batch: Any, kv_head: Any, i: Any, j: Any, visits: Ref, offset: Ref) -> tuple[Any, ...]:
            at, member = (i, j) if self.keys_outer else (j, i)
            q, k, _ = self.read(visits, batch, at)
            here = {"batch": batch, "head": kv_head * self.call.group + member, "kv_head": kv_head, "q": q, "k": k}
            return tuple(here.get(axis, 0) for axis in AXES[kind])

        *outer, rows, lanes = self.shape(kind, self.block_q, self.block_k)
        return pl.BlockSpec((*(None for _ in outer), rows, lanes), index)

    def run(
        self, kernel: Callable[..., None], seeing: Seeing, operands: Arrays, outputs: Arrays, scratch: Sequence[Any]
    ) -> list[Array]:
        """The kernel's outputs, asked for by kind and dtype. It is given a Visit, operands, outputs and scratch."""
        call, mask = self.call, self.call.mask(*seeing)
        visits, count = self.visits(mask.q_offset, mask.segment_ids)
        ids, num_ids = mask.segment_ids, 2 if call.has_segments else 0
        if ids is not None:
            column, row = ("k_column", "q_row") if self.keys_outer else ("q_column", "k_row")
            wide = jnp.broadcast_to(ids[:, :, None], (*ids.shape, LANES))
            operands = [(column, wide), (row, ids[:, None]), *operands]
        inputs = [_resize(x, self.shape(kind, *self.padded)) for kind, x in operands]
        inner = ((count, "arbitrary"), (call.group, "arbitrary" if self.keys_outer else "parallel"))
        grid = ((call.batch, "parallel"), (call.num_kv_heads, "parallel"), *(inner if self.keys_outer else inner[::-1]))
        outs = pl.pallas_call(
            lambda visits, offset, *refs: kernel(Visit(self, visits, offset, refs[:num_ids]), *refs[num_ids:]),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=tuple(size for size, _ in grid),
                in_specs=[self.spec(kind) for kind, _ in operands],
                out_specs=[self.spec(kind) for kind, _ in outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            out_shape=[jax.ShapeDtypeStruct(self.shape(kind, *self.padded), dtype) for kind, dtype in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=tuple(order for _, order in grid), vmem_limit_bytes=VMEM_LIMIT_BYTES
            ),
            interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
            name=f"attention{kernel.__name__}",
        )(visits, jnp.full(1, mask.q_offset, jnp.int32), *inputs)
        return list(map(_resize, outs, (self.shape(kind, call.q_len, call.kv_len) for kind, _ in outputs)))


def _resize(x: Array, shape: tuple[int, ...]) -> Array:
    """More of it is zeros, less is cut off."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, to - size, 0) for size, to in zip(x.shape, shape, strict=True)])


def _extremes(segment_ids: Array, block: int) -> Pair:
    """Least and greatest of each block, `[batch, blocks]`."""
    batch, length = segment_ids.shape
    blocks = jnp.pad(segment_ids, ((0, 0), (0, -length % block)), mode="edge").reshape(batch, -1, block)
    return blocks.min(-1), blocks.max(-1)


class Visit:
    """Inside a kernel: where it stands and what is to be done there."""

    def __init__(self, plan: Plan, visits: Ref, offset: Ref, ids: tuple[Ref, ...]) -> None:
        at, member = (pl.program_id(axis) for axis in ((2, 3) if plan.keys_outer else (3, 2)))
        q_block, k_block, todo = plan.read(visits, pl.program_id(0), at)
        self.plan, self.call, self.ids = plan, plan.call, ids
        self.first, self.last, self.whole, self.partly = (todo & bit != 0 for bit in (FIRST, LAST, WHOLE, PARTLY))
        if plan.keys_outer:  # a block of keys collects from all query heads of its group
            self.first, self.last = self.first & (member == 0), self.last & (member == plan.call.group - 1)
        self.k_start = k_block * plan.block_k
        self.ahead = self.k_start - q_block * plan.block_q - offset[0]  # the first key of the first query

    def run(self, start: Callable[[], None], step: Callable[[slice, bool], None], finish: Callable[[], None]) -> None:
        """`step` is given a piece of the block's keys, and whether it has a mask."""

        def steps(masked: bool) -> None:
            for at in range(0, self.plan.block_k, PIECE):
                step(slice(at, min(at + PIECE, self.plan.block_k)), masked)

        call = self.call
        pl.when(self.first)(start)
        pl.when(self.whole)(partial(steps, False))
        if call.causal or call.window is not None or call.has_segments or call.kv_len < self.plan.padded[1]:
            pl.when(self.partly)(partial(steps, True))
        pl.when(self.last)(finish)

    def scores(self, q: Array, k: Array, piece: slice, masked: bool) -> tuple[Array, Array | float]:
        """In units of log 2, `[queries, keys]`, where keys are outer `[keys, queries]`; and the soft-cap's slope."""
        slope: Array | float = 1.0
        products = _dot(k, q, 1) if self.plan.keys_outer else _dot(q, k, 1)
        if self.call.logit_softcap is None:
            scores = products * (self.call.scale * LOG2E)
        else:
            capped = jnp.tanh(products * (self.call.scale / self.call.logit_softcap))
            scores, slope = capped * (self.call.logit_softcap * LOG2E), 1.0 - capped * capped
        return (jnp.where(self._seen(scores.shape, piece), scores, -jnp.inf) if masked else scores), slope

    def _seen(self, shape: tuple[int, ...], piece: slice) -> Array:
        call, outer = self.call, self.plan.keys_outer
        query, key = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in ((1, 0) if outer else (0, 1)))
        conditions: list[Array] = []
        if call.causal:
            conditions.append(query - key >= self.ahead + piece.start)
        if call.window is not None:
            conditions.append(query - key < self.ahead + piece.start + call.window)
        if call.kv_len < self.plan.padded[1]:
            conditions.append(key < call.kv_len - self.k_start - piece.start)
        if self.ids:
            column, row = self.ids
            column, row = (column[piece], row[...]) if outer else (column[...], row[:, piece])
            conditions.append(_across(column, shape[1]) == row)
        return reduce(jnp.logical_and, conditions)


def _forward_kernel(visit: Visit, *refs: Ref) -> None:
    """`top` and `total`, the maximum so far and the sum by lane, `[block_q, LANES]`; `values` `[block_q, head_dim]`."""
    q, k, v, out, lse, top, total, values = refs

    def start() -> None:
        top[...] = jnp.full_like(top, FLOOR)
        total[...] = jnp.zeros_like(total)
        values[...] = jnp.zeros_like(values)

    def step(piece: slice, masked: bool) -> None:
        scores, _ = visit.scores(q[...], k[piece], piece, masked)
        before = top[...]
        now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        p = jnp.exp2(scores - _across(now, scores.shape[1]))
        shrink = jnp.exp2(before - now)
        top[...] = now
        total[...] = shrink * total[...] + sum(p[:, at : at + LANES] for at in range(0, p.shape[1], LANES))
        values[...] = _across(shrink, values.shape[1]) * values[...] + _dot(p.astype(v.dtype), v[piece])

    def finish() -> None:
        sums = jnp.sum(total[...], axis=1, keepdims=True)
        safe = jnp.where(sums == 0.0, 1.0, sums)  # 0 where a query sees nothing
        out[...] = (values[...] * (1.0 / safe)).astype(out.dtype)
        lse[...] = jnp.where(sums == 0.0, -jnp.inf, top[...] / LOG2E + jnp.log(safe)).T[:1]

    visit.run(start, step, finish)


def _queries_kernel(visit: Visit, *refs: Ref) -> None:
    """`lse` in units of log 2; `lse_lanes` and `delta_lanes` `[block_q, LANES]`, `total` `[block_q, head_dim]`."""
    q, k, v, d_out, lse, delta, d_q, lse_lanes, delta_lanes, total = refs

    def start() -> None:
        for row, lanes in ((lse, lse_lanes), (delta, delta_lanes)):
            lanes[...] = jnp.broadcast_to(row[...], lanes.shape[::-1]).T
        total[...] = jnp.zeros_like(total)

    def step(piece: slice, masked: bool) -> None:
        scores, slope = visit.scores(q[...], k[piece], piece, masked)
        p = jnp.exp2(scores - _across(lse_lanes[...], scores.shape[1]))
        d_p = _dot(d_out[...], v[piece], 1)
        d_scores = p * (d_p - _across(delta_lanes[...], scores.shape[1])) * slope
        total[...] += _dot(d_scores.astype(k.dtype), k[piece])

    def finish() -> None:
        d_q[...] = (total[...] * visit.call.scale).astype(d_q.dtype)

    visit.run(start, step, finish)


def _keys_kernel(visit: Visit, *refs: Ref) -> None:
    """`lse` in units of log 2; `total_k` and `total_v` `[block_k, head_dim]`."""
    q, k, v, d_out, lse, delta, d_k, d_v, total_k, total_v = refs

    def start() -> None:
        total_k[...] = total_v[...] = jnp.zeros_like(total_k)

    def step(piece: slice, masked: bool) -> None:
        scores, slope = visit.scores(q[...], k[piece], piece, masked)
        p = jnp.exp2(scores - lse[...])
        total_v[piece] += _dot(p.astype(v.dtype), d_out[...])
        d_scores = p * (_dot(v[piece], d_out[...], 1) - delta[...]) * slope
        total_k[piece] += _dot(d_scores.astype(q.dtype), q[...])

    def finish() -> None:
        d_k[...] = (total_k[...] * visit.call.scale).astype(d_k.dtype)
        d_v[...] = total_v[...].astype(d_v.dtype)

    visit.run(start, step, finish)


def _across(x: Array, width: int) -> Array:
    """A number of each row that stands in all lanes, over more or fewer of them."""
    return jnp.tile(x, (1, pl.cdiv(width, LANES)))[:, :width]


def _dot(a: Array, b: Array, b_axis: int = 0) -> Array:
    """float32, of `a`'s last axis with `b_axis`. Unless told, the units round float32 operands to bfloat16."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((1,), (b_axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
