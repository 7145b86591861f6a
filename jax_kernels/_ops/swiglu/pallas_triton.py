"""SwiGLU on NVIDIA GPUs as Pallas kernels that Triton compiles.

Forward, a program computes a block of the output: it walks along the rows of x once, for both products, which stay in
registers until they are activated. The way back begins with one pass over the kept products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels._ops.swiglu.call import Call
from jax_kernels._ops.swiglu.gradient import Pair, activate, d_products, differentiable
from jax_kernels.implementations import Config, Device, is_interpreting
from jax_kernels.masked_io import inside, load, store

SMALLEST_BLOCK = 16  # the smallest side of a product that tensor cores take
GROUP = 8
"""Blocks of tokens whose programs run close together, so that they find each other's weights in the cache."""

PASS_BLOCK = 2048
"""Elements that a program of the pass back takes: 16 a thread, whose loads are 16 bytes wide in half precision."""

NAMES = ("block_tokens", "block_mlp", "block_embed", "num_warps", "num_stages")


def _project(
    call: Call, config: Config, x: jax.Array, gate: jax.Array, up: jax.Array, *, keep: bool
) -> list[jax.Array]:
    tokens, mlp, embed, num_warps, num_stages = (dict(config)[name] for name in NAMES)
    grid = (pl.cdiv(call.tokens, tokens), pl.cdiv(call.mlp, mlp))
    length = pl.cdiv(call.embed, embed) * embed
    weight_spec = pl.BlockSpec((length, mlp), lambda program: (0, _place(grid, program)[1]))
    out_spec = pl.BlockSpec((tokens, mlp), partial(_place, grid))
    count = 3 if keep else 1
    results: list[jax.Array] = pl.pallas_call(
        partial(_project_kernel, call, grid, embed),
        grid=(grid[0] * grid[1],),
        in_specs=[
            pl.BlockSpec((tokens, length), lambda program: (_place(grid, program)[0], 0)),
            weight_spec,
            weight_spec,
        ],
        out_specs=[out_spec] * count,
        out_shape=[jax.ShapeDtypeStruct((call.tokens, call.mlp), x.dtype)] * count,
        # Parameters of Triton's also choose Triton, which is not each JAX version's default on a GPU.
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        interpret=is_interpreting(),
        name="swiglu_forward",
    )(x, gate, up)
    return results


def _place(grid: tuple[int, int], program: Any) -> tuple[Any, Any]:
    """Its block of tokens and of the width: all of the width for GROUP blocks of tokens, then for the next."""
    first = lax.div(program, GROUP * grid[1]) * GROUP
    size = jnp.minimum(grid[0] - first, GROUP)
    within = lax.rem(program, GROUP * grid[1])
    return first + lax.rem(within, size), lax.div(within, size)


def _project_kernel(
    call: Call, grid: tuple[int, int], embed: int, x: Any, gate: Any, up: Any, out: Any, *products: Any
) -> None:
    (tokens, length), mlp = x.shape, gate.shape[1]
    row, column = (at * size for at, size in zip(_place(grid, pl.program_id(0)), (tokens, mlp), strict=True))
    # Without a word on precision, Triton rounds float32 to TF32.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    dot = partial(jnp.dot, precision=precision, preferred_element_type=jnp.float32)

    def step(i: Any, sums: Pair) -> Pair:
        along = pl.ds(i * embed, embed)
        x_mask = inside((tokens, embed), (row, i * embed), (call.tokens, call.embed))
        weight_mask = inside((embed, mlp), (i * embed, column), (call.embed, call.mlp))
        values = load(x.at[:, along], x_mask)
        g, u = (
            total + dot(values, load(ref.at[along], weight_mask)) for total, ref in zip(sums, (gate, up), strict=True)
        )
        return g, u

    zeros = jnp.zeros((tokens, mlp), jnp.float32)
    g, u = lax.fori_loop(0, length // embed, step, (zeros, zeros))
    mask = inside((tokens, mlp), (row, column), (call.tokens, call.mlp))
    for ref, values in zip((out, *products), (activate(g, u), g, u), strict=False):
        store(ref, values, mask)


def _pull(call: Call, config: Config, d_out: jax.Array, g: jax.Array, u: jax.Array) -> Pair:
    mlp = min(pl.next_power_of_2(call.mlp), 512)
    tokens = PASS_BLOCK // mlp
    spec = pl.BlockSpec((tokens, mlp), lambda row, column: (row, column))
    d_g, d_u = pl.pallas_call(
        partial(_pull_kernel, call),
        grid=(pl.cdiv(call.tokens, tokens), pl.cdiv(call.mlp, mlp)),
        in_specs=[spec] * 3,
        out_specs=[spec] * 2,
        out_shape=[jax.ShapeDtypeStruct(g.shape, g.dtype)] * 2,
        input_output_aliases={1: 0, 2: 1},  # the products are not read again: their gradients take their place
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=is_interpreting(),
        name="swiglu_backward",
    )(d_out, g, u)
    return d_g, d_u


def _pull_kernel(call: Call, d_out: Any, g: Any, u: Any, d_g: Any, d_u: Any) -> None:
    starts = [pl.program_id(axis) * size for axis, size in enumerate(g.shape)]
    mask = inside(g.shape, starts, (call.tokens, call.mlp))
    for ref, values in zip((d_g, d_u), d_products(*(load(ref, mask) for ref in (d_out, g, u))), strict=True):
        store(ref, values, mask)


swiglu = differentiable(_project, _pull, lax.Precision.HIGHEST)


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "needs an NVIDIA GPU"
    if device.compute_capability < (8, 0):
        return "needs compute capability 8.0"
    if call.dtype not in ("float16", "bfloat16", "float32"):
        return call.dtype
    if 0 in (call.tokens, call.embed, call.mlp):
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Block sizes to try, the best guess first, with blocks no longer than what they divide."""
    assert device.compute_capability is not None
    hopper = (9, 0) <= device.compute_capability < (12, 0)
    rows = _BLOCKS["float32" if call.dtype == "float32" else "hopper" if hopper else "ampere"]
    if not hopper and device.compute_capability != (8, 0):
        rows = rows[:2]  # for what has 99 KiB of shared memory rather than 163 or 227
    longest = [max(SMALLEST_BLOCK, pl.next_power_of_2(size)) for size in (call.tokens, call.mlp, call.embed)]
    capped = [(*map(min, row[:3], longest), *row[3:]) for row in rows]
    return [tuple(zip(NAMES, row, strict=True)) for row in dict.fromkeys(capped)]


# NAMES, ordered by reasoning, not timed. As compiled, none spills registers where blocks divide the arrays. On Hopper
# these are products of groups of warps, two under way at once. A stage takes (block_tokens + 2 block_mlp) block_embed
# numbers of shared memory.
_BLOCKS = {
    "hopper": ((128, 128, 64, 8, 4), (256, 64, 64, 8, 4), (128, 64, 64, 4, 4), (64, 64, 64, 4, 4)),
    "ampere": ((128, 64, 32, 4, 4), (64, 64, 32, 4, 4), (256, 64, 32, 8, 3), (128, 64, 64, 8, 3)),
    "float32": ((128, 64, 16, 8, 3), (64, 64, 16, 8, 3)),
}
