"""The forward pass, FlashAttention-3's (Shah et al. 2024, arXiv 2407.08608).

A computing warpgroup owns `rows` queries, whose scores and output stay in its registers, and the two take turns at the
tensor cores: one multiplies, the other exponentiates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jax_kernels._ops.attention.pallas_mosaic_gpu.pipeline import release
from jax_kernels._ops.attention.pallas_mosaic_gpu.tiling import Side, Span, Tiling
from jax_kernels._ops.attention.pallas_mosaic_gpu.warpgroup import (
    LOG2_E,
    Ref,
    Scalar,
    accumulate,
    meet,
    plgpu,
    scores,
    zeros,
)

LOWEST = -1e30  # the maximum of no scores yet: finite, as a difference of infinities is no number


def attend(
    tiling: Tiling, mine: Side, rings: Sequence[Side], meeting: Ref, span: Span, first: Scalar, offset: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Out `[rows, head_dim]` and log-sum-exp `[rows]` of a warpgroup's queries, `mine`, from `first` on."""
    k_ring, v_ring = rings
    queries, (keys,), (values,) = mine.matrices[0].at[0], k_ring.matrices, v_ring.matrices
    (rows, width), (stages, _, block, _) = queries.shape, keys.shape
    start, *_, stop = span
    along = partial(lax.broadcast_in_dim, broadcast_dimensions=[0])

    def step(index: Scalar, carry: Any, masked: bool) -> Any:
        acc, top, total = carry
        slot = lax.rem(index - start, jnp.int32(stages))
        k_slot, v_slot = k_ring.at(slot), v_ring.at(slot)

        def multiply(products: Ref) -> Any:
            plgpu.wgmma(products, queries, keys.at[slot, 0].transpose((1, 0)))
            meet(meeting)
            return products[...]

        x, factor = scores(tiling.call, pl.run_scoped(multiply, plgpu.ACC((rows, block), jnp.float32)))
        if masked:
            x = tiling.mask(x, (first, index * block), offset, (mine, k_slot))
        release(k_slot)
        new_top = jnp.maximum(top, jnp.max(x, axis=1) * factor)
        p = jnp.exp2(x * factor - along(new_top, x.shape))
        decay = jnp.exp2(top - new_top)
        total = total * decay + jnp.sum(p, axis=1)
        carry = acc * along(decay, acc.shape), p.astype(values.dtype), new_top, total
        acc, p, top, total = lax.optimization_barrier(carry)  # all that before it is the other's turn
        plgpu.barrier_arrive(meeting)
        plgpu.barrier_wait(v_slot.barriers[0])
        plgpu.barrier_wait(meeting)

        def await_next() -> None:
            following = lax.rem(index + 1 - start, jnp.int32(stages))
            pl.when(index + 1 < stop)(partial(plgpu.barrier_wait, k_ring.at(following).barriers[0]))

        (acc,) = accumulate((acc, p, values, (slot, 0)), meanwhile=await_next)
        release(v_slot)
        return acc, top, total

    me = lax.axis_index("warpgroup")
    pl.when(start < stop)(partial(plgpu.barrier_wait, k_ring.at(0).barriers[0]))
    pl.when(me == 1)(partial(meet, meeting))  # half a step behind the other
    acc, top, total = tiling.walk(span, step, (zeros(rows, width), zeros(rows) + LOWEST, zeros(rows)))
    pl.when(me == 0)(partial(meet, meeting))
    acc = acc * along(1.0 / jnp.where(total == 0.0, 1.0, total), acc.shape)  # 0: a row that sees nothing
    return acc, top / LOG2_E + jnp.log(total)
