"""Both norms on TPUs as Pallas kernels: a block of whole rows is in VMEM while the next one is on its way.

Within it a kernel takes a slice of rows at a time, and of that one piece of columns after another, so that what it
computes stays in the vector registers. Pieces are read from VMEM again for each sum along the row: memory is what
counts, and the statistics cost less than it would to store them. What the rows of a block give to the gradients of
scale and bias is written once a block, and added up after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_kernels._ops.norms import formulas
from jax_kernels._ops.norms.call import Call, power_below
from jax_kernels.implementations import Config, Device, is_interpreting

LANES, SUBLANES = 128, 8
ROWS = 16  # of a tile of 2-byte numbers, the least that a slice can have
MOST_ROWS = 1024
WIDEST = 16384
SLICE = 2**17  # elements of a slice, enough for its sums along rows to overlap
PIECE = 2**13  # elements of a piece: 8 vector registers
VMEM_LIMIT_BYTES = 32 * 2**20


def norm(
    call: Call, config: Config, x: jax.Array, scale: jax.Array, bias: jax.Array | None, residual: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Out and, with a residual, the sum that was normalized; both `[rows, embed]` as x."""
    out, total = _norm(call, config, x, scale, bias, residual)
    return out, total


rms_norm = layer_norm = norm  # the call says which


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _norm(call: Call, config: Config, *operands: Any) -> Any:
    """`operands` are x, scale, bias or None, residual or None."""
    return _forward(call, config, *operands)[0]


def _forward(call: Call, config: Config, *operands: Any) -> Any:
    x, scale, bias, residual = operands
    inputs = (("row", x), ("weight", scale), ("weight", bias), ("row", residual))
    out, total = _run(_forward_kernel, call, config, inputs, ("row", "row" if call.has_residual else None))
    return (out, total), (x if total is None else total, scale)


def _backward(call: Call, config: Config, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    (kept, scale), (d_out, d_total) = saved, cotangents
    inputs = (("row", kept), ("weight", scale), ("row", d_out), ("row", d_total))
    outputs = ("row", "part", "part" if call.has_bias else None)
    sums = [pltpu.VMEM((SUBLANES, call.embed), jnp.float32)] * (2 if call.has_bias else 1)
    d_x, *parts = _run(_backward_kernel, call, config, inputs, outputs, sums)
    d_scale, d_bias = (None if part is None else jnp.sum(part, axis=(0, 1)).astype(call.param_dtype) for part in parts)
    return d_x, d_scale, d_bias, d_x if call.has_residual else None


_norm.defvjp(_forward, _backward)


def _run(kernel: Any, call: Call, config: Config, inputs: Any, outputs: Any, scratch: Sequence[Any] = ()) -> Any:
    """The kernel over all blocks of rows. `inputs` are (kind, array), `outputs` kinds; None where there is none."""
    block_rows = dict(config)["block_rows"]
    blocks = pl.cdiv(call.rows, block_rows)
    specs = {
        "row": pl.BlockSpec((block_rows, call.embed), lambda block: (block, 0)),
        "weight": pl.BlockSpec((1, call.embed), lambda block: (0, 0)),
        "part": pl.BlockSpec((None, 1, call.embed), lambda block: (block, 0, 0)),
    }
    shapes = {
        "row": jax.ShapeDtypeStruct((call.rows, call.embed), call.dtype),
        "part": jax.ShapeDtypeStruct((blocks, 1, call.embed), jnp.float32),
    }
    arrays = [x[None].astype(jnp.float32) if kind == "weight" and x is not None else x for kind, x in inputs]
    return pl.pallas_call(
        partial(kernel, call),
        grid=(blocks,),
        in_specs=[None if x is None else specs[kind] for kind, x in inputs],
        out_specs=tuple(None if kind is None else specs[kind] for kind in outputs),
        out_shape=tuple(None if kind is None else shapes[kind] for kind in outputs),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_LIMIT_BYTES),
        interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
        name=f"{call.kind}{kernel.__name__.removesuffix('_kernel')}",
    )(*arrays)


@dataclass(frozen=True)
class Pieces:
    """The pieces of an array's rows, float32: each is read where it is looked at."""

    ref: Any
    rows: Any
    columns: Sequence[slice]

    def __iter__(self) -> Iterator[jax.Array]:
        for columns in self.columns:
            yield self.ref[self.rows, columns].astype(jnp.float32)


def _walk(call: Call, block_rows: int, step: Any) -> None:
    """`step(start, rows, columns)` for each slice of a block: its first row, its rows, the columns of its pieces."""
    size = max(ROWS, min(block_rows, power_below(SLICE // call.embed)))
    width = max(LANES, PIECE // size)
    columns = [slice(at, min(at + width, call.embed)) for at in range(0, call.embed, width)]

    def turn(i: Any, _: None) -> None:
        start = pl.multiple_of(i * size, size)
        step(start, pl.ds(start, size), columns)

    lax.fori_loop(0, block_rows // size, turn, None)


def _forward_kernel(call: Call, *refs: Any) -> None:
    x, scale, bias, residual, out, total = refs

    def step(start: Any, rows: Any, columns: list[slice]) -> None:
        for piece in columns if total is not None else ():
            total[rows, piece], _ = formulas.added(x[rows, piece], residual[rows, piece])
        values = Pieces(x if total is None else total, rows, columns)
        stats = formulas.statistics(call, values)
        for piece, here in zip(columns, values, strict=True):
            shift = None if bias is None else bias[:, piece]
            out[rows, piece] = formulas.scaled(here, stats, scale[:, piece], shift).astype(out.dtype)

    _walk(call, x.shape[0], step)


def _backward_kernel(call: Call, *refs: Any) -> None:
    kept, scale, d_out, d_total, d_x, part_scale, part_bias, *sums = refs
    block_rows = kept.shape[0]
    for total in sums:
        total[...] = jnp.zeros_like(total)

    def step(start: Any, rows: Any, columns: list[slice]) -> None:
        arrays = [Pieces(kept, rows, columns), Pieces(scale, slice(None), columns), Pieces(d_out, rows, columns)]
        stats = formulas.statistics(call, arrays[0])
        pulls = formulas.pulls(call, stats, zip(*arrays, strict=True))
        for piece, (values, weights, d_outs) in zip(columns, zip(*arrays, strict=True), strict=True):
            d_values, d_scales = formulas.gradients(values, stats, weights, d_outs, pulls)
            if d_total is not None:
                d_values += d_total[rows, piece].astype(jnp.float32)
            d_x[rows, piece] = d_values.astype(d_x.dtype)
            for total, terms in zip(sums, (d_scales, d_outs), strict=False):
                total[:, piece] += _by_sublane(_inside(call, start, block_rows, terms))

    _walk(call, block_rows, step)
    for total, part in zip(sums, (part_scale, part_bias), strict=False):
        part[...] = jnp.sum(total[...], axis=0, keepdims=True)


def _inside(call: Call, start: Any, block_rows: int, terms: jax.Array) -> jax.Array:
    """Zeros for rows beyond the array, of which a block may hold anything."""
    if call.rows % block_rows == 0:
        return terms
    row = pl.program_id(0) * block_rows + start + lax.broadcasted_iota(jnp.int32, terms.shape, 0)
    return jnp.where(row < call.rows, terms, 0.0)


def _by_sublane(rows: jax.Array) -> jax.Array:
    """Their sum, but for the last step within a register: `[SUBLANES, width]`."""
    return jnp.sum(rows.reshape(-1, SUBLANES, rows.shape[1]), axis=0)


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if device.platform != "tpu" or any(old in device.kind for old in ("v2", "v3", "v4")):
        return "needs a TPU v5 or later"
    if call.dtype not in ("bfloat16", "float32"):  # float16 "Invalid vector type for load", Mosaic says
        return call.dtype
    if call.param_dtype not in ("float16", "bfloat16", "float32"):  # read as float32
        return call.param_dtype
    if call.embed > WIDEST:
        return f"embed {call.embed} is more than {WIDEST}"
    if 0 in (call.rows, call.embed):
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Blocks of a MiB first: an array's on its way takes longer than a step of the grid costs. Nothing was measured."""
    row_bytes = call.embed * jnp.dtype(call.dtype).itemsize
    most = min(MOST_ROWS, pl.next_power_of_2(call.rows))
    sizes = (max(ROWS, min(most, power_below(max(1, size // row_bytes)))) for size in (2**20, 2**21, 2**19))
    return [(("block_rows", rows),) for rows in dict.fromkeys(sizes)]
