"""A block of threads: a memory warpgroup that fills shared memory by bulk copies, and two that compute from there.

What a tile needs throughout is loaded once. What it walks through goes into rings, whose slots have two barriers:
`filled` by the copies, `empty` once both computing warpgroups have read it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jax_kernels import implementations
from jax_kernels._ops.attention.cost import cost
from jax_kernels._ops.attention.pallas_mosaic_gpu.tiling import WARPGROUPS, Side, Span, Tiling
from jax_kernels._ops.attention.pallas_mosaic_gpu.warpgroup import HAS_INTERPRETER, Ref, Scalar, meet, plgpu


def run(
    name: str,
    products: int,
    tiling: Tiling,
    compute: Any,
    types: Any,
    offset: jax.Array | None,
    mine: Side,
    others: tuple[Side, ...],
) -> list[jax.Array]:
    """Arrays of `types`, from what `compute` gives for the rows of `mine` that each warpgroup has.

    Args:
        products: of matrices over all pairs, see `cost`.
    """
    call, repeats = tiling.call, tiling.repeats
    tile_rows = tiling.tile_rows

    def body(offset: Ref, mine: Side, others: tuple[Side, ...], *rest: Any) -> None:
        *results, tile, rings, vectors, meeting = rest
        batch, i, head, me = map(lax.axis_index, ("batch", "tile", "head", "warpgroup"))
        # Under a causal mask the longest begin first.
        start = (i if tiling.of_keys else tiling.grid[1] - 1 - i) * tile_rows
        position = call.q_offset if offset is None else offset[0]
        span = tiling.span(start, jnp.minimum(start + tile_rows, tiling.length) - 1, position)

        def load() -> None:
            plgpu.set_max_registers(40, action="decrease")
            for i in range(tiling.groups):
                _copy(mine, tile.at(i), batch, start + i * tiling.rows, head)
            first_head = head * repeats if tiling.of_keys else lax.div(head, jnp.int32(call.group))
            _fill(tiling, span, others, rings, batch, first_head)

        def work() -> None:
            plgpu.set_max_registers(232, action="increase")
            group, part = (me, 0) if tiling.parts == 1 else (0, me)
            at, my = start + group * tiling.rows, tile.at(group)
            plgpu.barrier_wait(my.barriers[0])
            values = compute(tiling, my, rings, meeting, span, at, position)
            if tiling.parts > 1:
                meet(meeting)  # the other may still read what the results overwrite
            buffers = [*(x.at[part] for x in my.matrices), vectors.at[me]]
            _store(values, buffers, results, batch, at, head, part)

        lax.cond(me < WARPGROUPS, work, load)

    scratch = (
        _buffers(mine, tiling.groups, tiling.rows, tiling.parts),
        tuple(_buffers(side, tiling.stages, tiling.block, tiling.parts) for side in others),
        plgpu.SMEM((WARPGROUPS, tiling.rows), jnp.float32),
        plgpu.Barrier(num_arrivals=WARPGROUPS),
    )
    given = (x for side in (mine, *others) for x in (*side.matrices, *side.vectors))
    costs = cost(call, products, (*given, *types))
    return list(_kernel(body, name, tiling.grid, types, scratch, costs)(offset, mine, others))


def _kernel(
    body: Callable[..., None], name: str, grid: tuple[int, int, int], types: Any, scratch: Any, costs: pl.CostEstimate
) -> Any:
    return plgpu.kernel(
        body,
        out_type=types,
        scratch_types=scratch,
        grid=grid,
        grid_names=("batch", "tile", "head"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if implementations.is_interpreting() else None,
        kernel_name=name,
        **({"cost_estimate": costs} if HAS_INTERPRETER else {}),  # neither is under JAX 0.10
    )


def _buffers(side: Side, count: int, rows: int, parts: int) -> Side:
    """Types of as many slots in shared memory."""

    def matrix(x: jax.Array) -> Any:
        width = x.shape[-1] // parts
        swizzle = next(s for s in (128, 64, 32) if width * x.dtype.itemsize % s == 0)
        layout = plgpu.TilingTransform((8, swizzle // x.dtype.itemsize)), plgpu.SwizzleTransform(swizzle)
        return plgpu.SMEM((count, parts, rows, width), x.dtype, transforms=layout)

    vectors = tuple(plgpu.SMEM((count, rows), x.dtype) for x in side.vectors)
    arrivals = len(side.matrices) * parts + len(vectors), WARPGROUPS
    barriers = tuple(plgpu.Barrier(num_arrivals=x, num_barriers=count) for x in arrivals)
    return Side(tuple(map(matrix, side.matrices)), vectors, barriers)


def _fill(
    tiling: Tiling, span: Span, sides: tuple[Side, ...], rings: tuple[Side, ...], batch: Scalar, first_head: Scalar
) -> None:
    """Each block of the span, of each head in turn, into the slot that becomes empty."""
    each, stages = span[-1] - span[0], tiling.stages
    count = each * tiling.repeats

    def fill(step: Scalar, _: None) -> None:
        slot = lax.rem(step, jnp.int32(stages))
        turn, index = lax.div(step, jnp.maximum(each, 1)), lax.rem(step, jnp.maximum(each, 1))
        at, head = (span[0] + index) * tiling.block, first_head + turn
        for side, ring in zip(sides, rings, strict=True):
            pl.when(step >= stages)(partial(plgpu.barrier_wait, ring.at(slot).barriers[1]))
            pl.when(step < count)(partial(_copy, side, ring.at(slot), batch, at, head))

    # Some more than there are to fill: no phase of a barrier must pass unseen.
    lax.fori_loop(jnp.int32(0), count + stages, fill, None)


def _copy(source: Side, target: Side, batch: Scalar, start: Scalar, head: Scalar) -> None:
    """The rows from `start`, into a slot."""
    filled, _ = target.barriers
    for x, buffer in zip(source.matrices, target.matrices, strict=True):
        parts, rows, width = buffer.shape
        for i in range(parts):
            columns = pl.ds(i * width, width)
            plgpu.copy_gmem_to_smem(x.at[batch, pl.ds(start, rows), head, columns], buffer.at[i], filled)
    for x, buffer in zip(source.vectors, target.vectors, strict=True):
        row = x.at[batch, head if x.shape[1] > 1 else 0, pl.ds(start, buffer.shape[0])]
        plgpu.copy_gmem_to_smem(row, buffer, filled)


def _store(values: Any, buffers: Any, results: Any, batch: Scalar, start: Scalar, head: Scalar, part: Scalar) -> None:
    """Write values of the rows from `start`, by way of buffers whose contents are not needed any more.

    A matrix is stored through a descriptor of its array (TMA), which drops rows past the end of a sequence. A vector is
    stored by a plain bulk copy, which is cut off only at the end of the whole array and otherwise runs into the next
    head: vectors need `Tiling.tiled_length` rows per head.
    """
    for x, buffer, result in zip(values, buffers, results, strict=False):
        rows, columns = pl.ds(start, x.shape[0]), pl.ds(part * x.shape[-1], x.shape[-1])
        assert x.ndim == 2 or result.shape[-1] % x.shape[0] == 0, (result.shape, x.shape)
        buffer[...] = x.astype(buffer.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(buffer, result.at[(batch, rows, head, columns) if x.ndim == 2 else (batch, head, rows)])
    plgpu.wait_smem_to_gmem(0)


def release(slot: Side) -> None:
    """Tell the memory warpgroup that this one has read a slot."""
    if slot.vectors or implementations.is_interpreting():
        plgpu.commit_smem()  # bulk copies keep their order with products, but not with ordinary loads
    plgpu.barrier_arrive(slot.barriers[1])
