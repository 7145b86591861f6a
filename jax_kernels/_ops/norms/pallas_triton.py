"""Both norms on NVIDIA GPUs as Pallas kernels that Triton compiles: memory moves each array once, and nothing else.

A program holds whole rows, in pieces whose width is a power of two, as Triton's blocks are, and which together are
little wider than embed. Backward, as many programs as keep the GPU busy walk over all rows, so that each can add up in
registers what its rows give to the gradients of scale and bias. It writes that once, and the programs' parts are added
up after: in one order, the same each time. The widest rows do not fit registers beside those sums. Of them a piece is
read a second time, from the cache, when the sums along the row are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial, reduce
from operator import and_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels import implementations
from jax_kernels._ops.norms import formulas
from jax_kernels._ops.norms.call import Call, power_below
from jax_kernels._ops.norms.formulas import Statistics
from jax_kernels.implementations import Config, Device
from jax_kernels.masked_io import load, store

MOST_PIECES = 8
WIDEST = 16384
WIDEST_HELD = (
    8192  # wider rows spilled 100 bytes a thread and more, on an H100 as compiled; read again, they spill none
)
BLOCK = 4096  # elements of a block, of more where one row has more: 16 for each of 256 threads
MOST_ROWS, MOST_WARPS = 64, 32
MULTIPROCESSORS = {(8, 0): 108, (9, 0): 132}  # of an A100 and an H100, NVIDIA's data sheets


def norm(
    call: Call, config: Config, x: jax.Array, scale: jax.Array, bias: jax.Array | None, residual: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Out and, with a residual, the sum that was normalized; both `[rows, embed]` as x."""
    out, total = _norm(call, config, implementations.is_interpreting(), x, scale, bias, residual)
    return out, total


rms_norm = layer_norm = norm  # the call says which


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _norm(call: Call, config: Config, interpret: bool, *operands: Any) -> Any:
    """`operands` are x, scale, bias or None, residual or None."""
    return _forward(call, config, interpret, *operands)[0]


def _forward(call: Call, config: Config, interpret: bool, *operands: Any) -> Any:
    kinds = ("row", "weight", "weight", "row")
    outputs = ("row", "row" if call.has_residual else None, "number" if call.is_centred else None, "number")
    out, total, *stats = _run(_forward_kernel, "", call, config, interpret, (kinds, operands), outputs)
    x, scale, _, _ = operands
    return (out, total), (x if total is None else total, scale, *stats)


def _backward(call: Call, config: Config, interpret: bool, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    kinds = ("row", "weight", "number", "number", "row", "row")
    outputs = ("row", "part", "part" if call.has_bias else None)
    operands = (*saved, *cotangents)
    d_x, *parts = _run(_backward_kernel, "backward_", call, config, interpret, (kinds, operands), outputs)
    d_scale, d_bias = (None if part is None else jnp.sum(part, axis=0).astype(call.param_dtype) for part in parts)
    return d_x, d_scale, d_bias, d_x if call.has_residual else None


_norm.defvjp(_forward, _backward)


def _run(kernel: Any, name: str, call: Call, config: Config, interpret: bool, inputs: Any, outputs: Any) -> Any:
    """The kernel over all blocks of rows: one a program, or backward as many as each of its programs takes."""
    sizes = dict(config)
    block_rows, num_warps = sizes[f"{name}block_rows"], sizes[f"{name}num_warps"]
    blocks, (pieces, width) = pl.cdiv(call.rows, block_rows), _pieces(call)
    programs = min(sizes["backward_programs"], blocks) if name else blocks
    walk = Walk(block_rows, programs, turns=pl.cdiv(blocks, programs))
    specs = {
        "row": pl.BlockSpec((walk.length, pieces * width), lambda program: (0, 0)),
        "number": pl.BlockSpec((walk.length,), lambda program: (0,)),
        "weight": pl.BlockSpec((pieces * width,), lambda program: (0,)),
        "part": pl.BlockSpec((None, pieces * width), lambda program: (program, 0)),
    }
    shapes = {
        "row": jax.ShapeDtypeStruct((call.rows, call.embed), call.dtype),
        "number": jax.ShapeDtypeStruct((call.rows,), jnp.float32),
        "part": jax.ShapeDtypeStruct((programs, call.embed), jnp.float32),
    }
    kinds, operands = inputs
    return pl.pallas_call(
        partial(kernel, call, walk),
        grid=(programs,),
        in_specs=[None if x is None else specs[kind] for kind, x in zip(kinds, operands, strict=True)],
        out_specs=tuple(None if kind is None else specs[kind] for kind in outputs),
        out_shape=tuple(None if kind is None else shapes[kind] for kind in outputs),
        # Parameters of Triton's also choose Triton, which is not each JAX version's default on a GPU.
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=1),
        interpret=interpret,
        name=f"{call.kind}_{name or 'forward'}".rstrip("_"),
    )(*operands)


def _pieces(call: Call) -> tuple[int, int]:
    """Number and width of a row's pieces: few columns beyond embed, then few pieces; narrow ones where read again."""
    widths = [WIDEST // MOST_PIECES] if call.embed > WIDEST_HELD else [2**i for i in range(14)]
    options = [(pl.cdiv(call.embed, width), width) for width in widths]
    return min((o for o in options if o[0] <= MOST_PIECES), key=lambda o: (o[0] * o[1], o[0]))


class Walk(NamedTuple):
    """Which rows each of the programs takes: blocks, in `turns`, of which the last may lead beyond the arrays."""

    block_rows: int
    programs: int
    turns: int

    @property
    def length(self) -> int:
        return self.block_rows * self.programs * self.turns


class Block:
    """The rows of the arrays that a program takes in a turn, by pieces."""

    def __init__(self, call: Call, walk: Walk, program: Any, turn: Any = 0) -> None:
        count, width = _pieces(call)
        start = (program + turn * walk.programs) * walk.block_rows
        self.rows, self.shape = pl.ds(start, walk.block_rows), (walk.block_rows, width)
        self.columns = [pl.ds(i * width, width) for i in range(count)]
        is_cut = call.rows < walk.length
        self.has_rows = start + lax.iota(jnp.int32, walk.block_rows) < call.rows if is_cut else None
        self.has_columns = [
            i * width + lax.iota(jnp.int32, width) < call.embed if (i + 1) * width > call.embed else None
            for i in range(count)
        ]
        self.has = [self._has(columns) for columns in self.has_columns]

    def _has(self, columns: jax.Array | None) -> jax.Array | None:
        """The part of a piece that the array has; None if it has all."""
        masks = [None if self.has_rows is None else self.has_rows[:, None], None if columns is None else columns[None]]
        known = [jnp.broadcast_to(mask, self.shape) for mask in masks if mask is not None]
        return reduce(and_, known) if known else None

    def read(self, ref: Any | None) -> Iterator[Any]:
        """Pieces, or None for each of an array that there is not."""
        for columns, has in zip(self.columns, self.has, strict=True):
            yield None if ref is None else load(ref.at[self.rows, columns], has)

    def read_weights(self, ref: Any | None) -> Iterator[Any]:
        for columns, has in zip(self.columns, self.has_columns, strict=True):
            yield None if ref is None else load(ref.at[columns], has).astype(jnp.float32)[None]

    def read_number(self, ref: Any) -> jax.Array:
        return load(ref.at[self.rows], self.has_rows)[:, None]

    def write(self, ref: Any, pieces: Iterable[jax.Array]) -> None:
        for piece, columns, has in zip(pieces, self.columns, self.has, strict=True):
            store(ref.at[self.rows, columns], piece, has)

    def write_number(self, ref: Any, numbers: jax.Array) -> None:
        store(ref.at[self.rows], numbers.reshape(self.shape[0]), self.has_rows)

    def write_part(self, ref: Any, pieces: Iterable[jax.Array]) -> None:
        """The sums of the pieces over their rows."""
        for piece, columns, has in zip(pieces, self.columns, self.has_columns, strict=True):
            store(ref.at[columns], jnp.sum(piece, axis=0), has)


def _forward_kernel(call: Call, walk: Walk, *refs: Any) -> None:
    x, scale, bias, residual, out, total, mean, reciprocal = refs
    block = Block(call, walk, pl.program_id(0))
    kept, values = zip(*map(formulas.added, block.read(x), block.read(residual)), strict=True)
    if total is not None:
        block.write(total, kept)
    stats = formulas.statistics(call, values, [None if has is None else has[None] for has in block.has_columns])
    if stats.mean is not None:
        block.write_number(mean, stats.mean)
    block.write_number(reciprocal, stats.reciprocal)
    pieces = zip(values, block.read_weights(scale), block.read_weights(bias), strict=True)
    block.write(out, (formulas.scaled(piece, stats, weights, shift) for piece, weights, shift in pieces))


def _backward_kernel(call: Call, walk: Walk, *refs: Any) -> None:
    kept, scale, mean, reciprocal, d_out, d_total, d_x, d_scale, d_bias = refs
    program = pl.program_id(0)

    def step(turn: Any, sums: list[Any]) -> list[Any]:
        block, new_sums = Block(call, walk, program, turn), []
        stats = Statistics(None if mean is None else block.read_number(mean), block.read_number(reciprocal))

        def read() -> Iterator[Any]:
            arrays = (map(_wide, block.read(ref)) for ref in (d_out, d_total))
            return zip(map(_wide, block.read(kept)), block.read_weights(scale), *arrays, strict=True)

        held = list(read()) if call.embed <= WIDEST_HELD else None
        pulls = formulas.pulls(call, stats, (piece[:3] for piece in held or read()))

        def d_rows() -> Iterator[jax.Array]:
            for (values, weights, d_outs, d_totals), (sum_scale, sum_bias) in zip(held or read(), sums, strict=True):
                d_values, d_scales = formulas.gradients(values, stats, weights, d_outs, pulls)
                new_sums.append((sum_scale + d_scales, None if d_bias is None else sum_bias + d_outs))
                yield d_values if d_totals is None else d_values + d_totals

        block.write(d_x, d_rows())
        return new_sums

    block = Block(call, walk, program)
    zeros = jnp.zeros(block.shape, jnp.float32)
    sums = lax.fori_loop(0, walk.turns, step, [(zeros, None if d_bias is None else zeros)] * len(block.columns))
    sums_scale, sums_bias = zip(*sums, strict=True)
    block.write_part(d_scale, sums_scale)
    if d_bias is not None:
        block.write_part(d_bias, sums_bias)


def _wide(piece: jax.Array | None) -> jax.Array | None:
    return None if piece is None else piece.astype(jnp.float32)


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "needs an NVIDIA GPU"
    if device.compute_capability < (8, 0):
        return "needs compute capability 8.0"
    for dtype in (call.dtype, call.param_dtype):
        if dtype not in ("float16", "bfloat16", "float32"):
            return dtype
    if call.embed > WIDEST:
        return f"embed {call.embed} is more than {WIDEST}"
    if 0 in (call.rows, call.embed):
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Block sizes to try, the best guess first, by reasoning: nothing was timed.

    The first spills no registers, compiled for an H100.
    """
    count, width = _pieces(call)
    rows = min(power_below(max(1, BLOCK // (count * width))), MOST_ROWS, pl.next_power_of_2(call.rows))
    cores = MULTIPROCESSORS.get(device.compute_capability or (0, 0), 128)

    def config(per_thread: int, programs: int) -> Config:
        threads = rows * count * width // per_thread
        warps = min(power_below(max(1, threads // 32)), MOST_WARPS)
        # A row that is read again lets its registers go, and can do with fewer threads, whose loads are wider.
        backward = warps if call.embed <= WIDEST_HELD else min(warps, 16)
        sizes = {"block_rows": rows, "num_warps": warps, "backward_block_rows": rows}
        sizes |= {"backward_num_warps": backward, "backward_programs": programs * cores}
        return tuple(sizes.items())

    return list(dict.fromkeys(config(*choice) for choice in ((16, 2), (8, 2), (16, 4), (32, 2), (32, 4))))
