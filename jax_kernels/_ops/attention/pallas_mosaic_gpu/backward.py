"""The backward pass, for queries and for keys alike.

A tile's rows are the rows of its scores, so that the left sides of the later products are in registers already. Where
head_dim is over 128, the sums of 64 rows would not fit a warpgroup's registers: then both have the same rows, and each
sums half of the columns.
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
    Ref,
    Scalar,
    accumulate,
    load_vector,
    plgpu,
    scores,
    zeros,
)


def sum_gradients(
    tiling: Tiling, mine: Side, rings: Sequence[Side], meeting: Ref, span: Span, first: Scalar, offset: Scalar
) -> tuple[jax.Array, ...]:
    """d_q, or d_k and d_v, `[rows, width]` of a warpgroup's rows, `mine`, from `first` on. Matrices are q and d_out, or
    k and v; vectors of queries are the log-sum-exp for exp2, and delta."""
    call, (ring,), (start, *_, stop) = tiling.call, rings, span
    (parts, rows, width), (stages, _, block, _) = mine.matrices[0].shape, ring.matrices[0].shape
    shape, q_axis = (rows, block), 1 if tiling.of_keys else 0
    part = 0 if parts == 1 else lax.axis_index("warpgroup")

    def step(head: Scalar, index: Scalar, sums: Any, masked: bool) -> Any:
        slot = lax.rem(head * (stop - start) + index - start, jnp.int32(stages))
        others = ring.at(slot)
        lse, delta, *_ = (others if tiling.of_keys else mine).vectors
        plgpu.barrier_wait(others.barriers[0])

        def multiply(*products: Ref) -> tuple[jax.Array, jax.Array]:
            for acc, a, b in zip(products, mine.matrices, others.matrices, strict=True):
                for i in range(parts):
                    plgpu.wgmma(acc, a.at[i], b.at[i].transpose((1, 0)))
            x, factor = scores(call, plgpu.wgmma_accumulator_load(products[0], wait_n=parts))
            slope = 1.0 if call.logit_softcap is None else 1.0 - x * x
            if masked:
                x = tiling.mask(x, (first, index * block), offset, (mine, others))
            p = jnp.exp2(x * factor - load_vector(lse, shape, q_axis))
            return p * slope * (products[1][...] - load_vector(delta, shape, q_axis)), p

        factors = pl.run_scoped(multiply, *[plgpu.ACC(shape, jnp.float32)] * 2)  # of the rows of others.matrices
        matrices = zip(sums, factors, ring.matrices, strict=False)  # of which d_q has only the first
        sums = accumulate(*[(acc, x.astype(b.dtype), b, (slot, part)) for acc, x, b in matrices])
        release(others)
        return sums

    def of_head(head: Scalar, sums: Any) -> Any:
        return tiling.walk(span, partial(step, head), sums)

    count = 2 if tiling.of_keys else 1
    sums = lax.fori_loop(0, tiling.repeats, of_head, (zeros(rows, width),) * count)
    return sums[0] * call.scale, *sums[1:]
