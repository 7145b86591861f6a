"""The product on NVIDIA GPUs as a Pallas kernel that Triton compiles: scales are applied in registers.

A program computes a block of the results. It sums the products of a block of scales, of int8 exactly in int32, of fp8
in float32, scales that sum and adds it to its total: operands are read once a program and nothing else is written.

Tensor cores want int8 with k as the last axis. A weight `[k, n]` is turned over byte by byte on its way through shared
memory; or, with `k_last`, by XLA before the kernel: a pass over the weight, which many rows are worth, and no pass at
all where the caller holds it as `[n, k]` and passes its transpose.

fp8 is multiplied as float16, which holds it exactly. Hopper multiplies it as it is twice as fast, but sums it in fewer
bits than float32 has, which Pallas does not let Triton do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels._ops.quantized_matmul.call import Call
from jax_kernels._ops.quantized_matmul.gradient import differentiable
from jax_kernels.implementations import Config, Device, is_interpreting

SMALLEST_SIDE, SMALLEST_K = 16, 32  # of a product of 8 bits that tensor cores take
FEW_ROWS = 64  # up to here the weight is most of what there is to read
GROUP = 8  # blocks of rows that run side by side, so that what they read of the weight is in the cache

NAMES = ("block_m", "block_n", "block_k", "num_warps", "num_stages", "k_last")
SHARED_KIB = {(8, 0): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}
"""Shared memory that a program may have, by compute capability; 99 on others (CUDA C++ Programming Guide, table of
technical specifications)."""

Span = tuple[Any, int, int | None]
"""Start and size of a piece of an axis, and where the axis ends; None where the piece is known to end before."""


@differentiable
def quantized_matmul(
    call: Call, config: Config, x: jax.Array, weight: jax.Array, x_scale: jax.Array, weight_scale: jax.Array
) -> jax.Array:
    """`[m, n]` of `out_dtype`."""
    sizes = dict(config)
    weight = weight.T if sizes["k_last"] else weight
    # Each program may reach all of an array, which is at least a block then.
    m, k, n = (max(getattr(call, axis), sizes[f"block_{axis}"]) for axis in "mkn")
    shapes = ((m, k), (n, k) if sizes["k_last"] else (k, n), (m, call.x_blocks), weight_scale.shape)
    out: jax.Array = pl.pallas_call(
        partial(_kernel, call, sizes),
        grid=(pl.cdiv(call.m, sizes["block_m"]) * pl.cdiv(call.n, sizes["block_n"]),),
        in_specs=[pl.BlockSpec(shape, lambda program: (0, 0)) for shape in shapes],
        out_specs=pl.BlockSpec((m, n), lambda program: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((call.m, call.n), call.out_dtype),
        # Parameters of Triton's also choose Triton, which is not each JAX version's default on a GPU.
        compiler_params=plgpu.CompilerParams(num_warps=sizes["num_warps"], num_stages=sizes["num_stages"]),
        interpret=is_interpreting(),
        name="quantized_matmul",
    )(x, weight, x_scale, weight_scale)
    return out


def _kernel(call: Call, sizes: dict[str, int], x: Any, weight: Any, x_scale: Any, weight_scale: Any, out: Any) -> None:
    block_m, block_n, block_k = (sizes[name] for name in ("block_m", "block_n", "block_k"))
    row, column = _place(pl.cdiv(call.m, block_m), pl.cdiv(call.n, block_n))
    rows = (row * block_m, block_m, call.m if call.m % block_m else None)
    columns = (column * block_n, block_n, call.n if call.n % block_n else None)

    def products(block: Any) -> jax.Array:
        def step(index: Any, total: jax.Array) -> jax.Array:
            start = block * call.block_k
            end = start + call.block_k if call.block_k % block_k else None
            ks = (start + index * block_k, block_k, end)
            if sizes["k_last"]:
                return total + _dot(call, _load(x, rows, ks), _load(weight, columns, ks), 1)
            return total + _dot(call, _load(x, rows, ks), _load(weight, ks, columns), 0)

        zeros = jnp.zeros((block_m, block_n), call.accumulator)
        steps = pl.cdiv(call.block_k, block_k)
        return step(0, zeros) if steps == 1 else lax.fori_loop(0, steps, step, zeros)

    def scaled(block: Any) -> jax.Array:
        of_x, of_weight = call.scale_of(block)
        x_factor = plgpu.load(x_scale.at[pl.ds(*rows[:2]), of_x], mask=_inside(rows))[:, None]
        weight_factor = _weight_factor(call, weight_scale, of_weight, columns)
        factors: jax.Array = x_factor * weight_factor
        return products(block).astype(jnp.float32) * factors

    if call.num_blocks == 1:
        total = scaled(jnp.int32(0))
    else:
        start = jnp.zeros((block_m, block_n), jnp.float32)
        total = lax.fori_loop(0, call.num_blocks, lambda block, total: total + scaled(block), start)
    at = out.at[pl.ds(*rows[:2]), pl.ds(*columns[:2])]
    plgpu.store(at, total.astype(out.dtype), mask=_inside(rows, columns))


def _place(num_rows: int, num_columns: int) -> tuple[Any, Any]:
    """The block of rows and that of columns that this program computes."""
    program = pl.program_id(0)
    first = program // (GROUP * num_columns) * GROUP
    height = jnp.minimum(num_rows - first, GROUP)
    within = program % (GROUP * num_columns)
    return first + within % height, within // height


def _weight_factor(call: Call, weight_scale: Any, block: Any, columns: Span) -> Any:
    """The scales of a block of columns, `[1, block_n]`; or their one scale."""
    start, size, _ = columns
    shared = call.n // call.column_blocks
    if shared % size == 0:
        return weight_scale[block, start // shared]
    at = lax.div(start + lax.iota(jnp.int32, size), jnp.int32(shared))
    return plgpu.load(weight_scale.at[block, at], mask=_inside(columns))[None, :]


def _inside(*spans: Span) -> Any | None:
    """Which numbers of a piece of an array it has; None where it has all."""
    masks = []
    for axis, (start, size, end) in enumerate(spans):
        if end is not None:
            one = start + lax.iota(jnp.int32, size) < end
            masks.append(lax.broadcast_in_dim(one, tuple(size for _, size, _ in spans), (axis,)))
    return reduce(jnp.logical_and, masks) if masks else None


def _load(ref: Any, *spans: Span) -> jax.Array:
    """A piece of an array, zeros beyond its end."""
    inside = _inside(*spans)
    piece = ref.at[tuple(pl.ds(start, size) for start, size, _ in spans)]
    return plgpu.load(piece, mask=inside, other=None if inside is None else jnp.zeros((), ref.dtype))


def _dot(call: Call, x: jax.Array, weight: jax.Array, contracted: int) -> jax.Array:
    dimensions = (((1,), (contracted,)), ((), ()))
    if call.dtype != "int8":
        x, weight = x.astype(jnp.float16), weight.astype(jnp.float16)
    return lax.dot_general(x, weight, dimensions, preferred_element_type=call.accumulator)


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernel does not support this call on this device; None if it does."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "needs an NVIDIA GPU"
    if device.compute_capability < (8, 0):
        return "needs compute capability 8.0"
    if call.dtype != "int8" and device.compute_capability < (8, 9):
        return f"{call.dtype} needs compute capability 8.9"
    return "an empty array" if 0 in (call.m, call.k, call.n) else None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Block sizes to try, the best guess first, with blocks no longer than the lengths that they divide."""
    fitting = []
    for block_m, block_n, block_k, *rest in _BLOCKS["few rows" if call.m <= FEW_ROWS else call.dtype]:
        blocks = (
            min(block_m, max(SMALLEST_SIDE, pl.next_power_of_2(call.m))),
            min(block_n, max(SMALLEST_SIDE, pl.next_power_of_2(call.n))),
            min(block_k, max(SMALLEST_K, pl.next_power_of_2(call.block_k))),
        )
        if _fits(call, device, *blocks, *rest):
            fitting.append((*blocks, *rest))
    return [tuple(zip(NAMES, row, strict=True)) for row in dict.fromkeys(fitting)]


def _fits(
    call: Call, device: Device, block_m: int, block_n: int, block_k: int, num_warps: int, num_stages: int, k_last: int
) -> bool:
    """Whether shared memory holds the stages, and fp8 as float16 besides; and registers the sums, which are two where
    there are several blocks of scales (with more than this ptxas was seen to spill)."""
    assert device.compute_capability is not None
    copies = num_stages + (0 if call.dtype == "int8" else 2)
    sums = block_m * block_n * (1 if call.num_blocks == 1 else 2)
    shared = SHARED_KIB.get(device.compute_capability, 99)
    return copies * (block_m + block_n) * block_k <= shared * 2**10 and sums <= 128 * 32 * num_warps


# NAMES of each, ordered by reasoning and by what they compile to, not timed.
_BLOCKS = {
    "int8": (
        (128, 256, 128, 8, 3, 1),
        (128, 128, 128, 8, 3, 1),
        (128, 256, 64, 8, 3, 1),
        (128, 128, 64, 8, 4, 1),
        (128, 128, 64, 8, 3, 0),
        (64, 64, 64, 4, 3, 1),
    ),
    "float8_e4m3fn": (
        (128, 256, 64, 8, 3, 0),
        (128, 128, 128, 8, 3, 0),
        (128, 128, 64, 8, 3, 0),
        (128, 128, 128, 8, 3, 1),
        (64, 64, 64, 4, 3, 0),
    ),
    "few rows": (
        (64, 64, 256, 4, 4, 0),
        (64, 32, 256, 4, 4, 0),
        (64, 64, 128, 4, 4, 0),
        (64, 64, 128, 4, 3, 1),
    ),
}
