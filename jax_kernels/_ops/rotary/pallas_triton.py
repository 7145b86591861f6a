"""Rotary on NVIDIA GPUs as a Pallas kernel that Triton compiles.

A program turns some heads at some positions. Memory is all that counts: x is read and written once, and the angles are
fetched once for all heads of a program.
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

from jax_kernels._ops.rotary.call import Call, differentiable
from jax_kernels.implementations import Config, Device, is_interpreting
from jax_kernels.masked_io import inside, load, store


@differentiable
def rotary(call: Call, config: Config, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    length, heads, num_warps = (size for _, size in config)
    grid = (call.batch, pl.cdiv(call.length, length), pl.cdiv(call.heads, heads))

    def place(program: Any) -> tuple[Any, Any, Any]:
        """Row of the batch, block of positions and block of heads."""
        rest = lax.div(program, grid[2])
        return lax.div(rest, grid[1]), lax.rem(rest, grid[1]), lax.rem(program, grid[2])

    def angles_at(program: Any) -> tuple[Any, Any, Any]:
        row, position, _ = place(program)
        return (0 if call.angles_batch == 1 else row, position, 0)

    halves = x.reshape(*x.shape[:-1], 2, call.half)
    width = pl.next_power_of_2(call.half)
    halves_spec = pl.BlockSpec((None, length, heads, 2, width), lambda program: (*place(program), 0, 0))
    angles_spec = pl.BlockSpec((None, length, width), angles_at)
    turned: jax.Array = pl.pallas_call(
        partial(_kernel, call, place),
        grid=(grid[0] * grid[1] * grid[2],),  # one axis: CUDA ends the others at 65,535
        in_specs=[halves_spec, angles_spec, angles_spec],
        out_specs=halves_spec,
        out_shape=jax.ShapeDtypeStruct(halves.shape, x.dtype),
        # Parameters of Triton's also choose Triton, which is not each JAX version's default on a GPU.
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=1),
        interpret=is_interpreting(),
        name="rotary",
    )(halves, cos, sin)
    return turned.reshape(x.shape)


def _kernel(call: Call, place: Any, x: Any, cos: Any, sin: Any, out: Any) -> None:
    length, heads, _, width = x.shape
    _, position, head = place(pl.program_id(0))
    starts, lengths = (position * length, head * heads, 0, 0), (call.length, call.heads, 1, call.half)
    mask = inside((length, heads, 1, width), starts, lengths)
    angles_mask = inside((length, width), starts[::3], lengths[::3])
    left, right = (load(x.at[:, :, pl.ds(side, 1)], mask).astype(jnp.float32) for side in (0, 1))
    c, s = (load(ref, angles_mask)[:, None, None] for ref in (cos, sin))
    store(out.at[:, :, pl.ds(0, 1)], left * c - right * s, mask)
    store(out.at[:, :, pl.ds(1, 1)], right * c + left * s, mask)


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernel does not support this call on this device; None if it does."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "needs an NVIDIA GPU"
    if device.compute_capability < (8, 0):
        return "needs compute capability 8.0"
    if call.dtype not in ("float16", "bfloat16", "float32"):
        return call.dtype
    if 0 in (call.batch, call.length, call.heads, call.head_dim):
        return "an empty array"
    if call.half > PAIRS:
        return f"head_dim {call.head_dim} is more than {2 * PAIRS}"
    return None


PAIRS = 2048
"""Pairs of a program: 16 for each thread of four warps, whose loads from both sides have 16 bytes in half precision."""


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Heads that lie together first, then positions, as many as give a program its pairs; ordered by reasoning."""
    width = pl.next_power_of_2(call.half)
    found = []
    for most_heads, pairs, num_warps in ((8, PAIRS, 4), (32, PAIRS, 4), (8, 2 * PAIRS, 8), (8, PAIRS // 2, 4)):
        heads = max(min(pl.next_power_of_2(call.heads), most_heads, pairs // width), 1)
        length = max(min(pl.next_power_of_2(call.length), pairs // (width * heads)), 1)
        found.append((("block_len", length), ("block_heads", heads), ("num_warps", num_warps)))
    return list(dict.fromkeys(found))
