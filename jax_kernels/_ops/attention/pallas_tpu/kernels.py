"""The three kernels, a visit at a time; `pallas_triton/kernels.py` explains the algorithm.

The vector registers, 8 rows of 128 lanes, decide the layouts. Scores are `[queries, keys]` in the forward and in the
kernel for queries, where a number of each query, such as its maximum, stands in all lanes of its row; `[keys, queries]`
in the kernel for keys, where such numbers lie along the lanes. So no product needs a block of scores transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_kernels._ops.attention.pallas_tpu.plan import FIRST, LANES, LAST, PARTLY, WHOLE, Plan, Ref

PIECE = 512  # keys whose scores are held at once: one piece's products overlap with the exponentials of another
LOG2E = math.log2(math.e)  # the hardware's exponential is a power of 2
# The maximum of no scores: finite, so that a hidden score, -inf, less any maximum is -inf and never NaN.
FLOOR = float(np.finfo(np.float32).min) / 2


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


def forward_kernel(visit: Visit, *refs: Ref) -> None:
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


def queries_kernel(visit: Visit, *refs: Ref) -> None:
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


def keys_kernel(visit: Visit, *refs: Ref) -> None:
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
