"""Rotary for TPUs as a Pallas kernel over x as `[batch, len, heads * head_dim]`, which is how a projection leaves it.

The heads lie side by side along the lanes. A rotation that carries each lane to its pair's other half is two rotations
of the whole row by half a head, one either way, of which each lane takes that which came from its own head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_kernels.forms import Config, Device, is_interpreting
from jax_kernels.rotary.call import Call, differentiable

LANES = 128


@differentiable
def rotary(call: Call, config: Config, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    block_len, block_lanes = (size for _, size in config)
    # Rows with angles of their own are one long row.
    batch, length = (1, call.batch * call.length) if call.angles_batch == call.batch else (call.batch, call.length)
    width = call.heads * call.head_dim
    block_len = min(block_len, length)
    x_spec = pl.BlockSpec((None, block_len, block_lanes), lambda row, position, lanes: (row, position, lanes))
    angles_spec = pl.BlockSpec((None, block_len, call.half), lambda row, position, lanes: (0, position, 0))
    turned = pl.pallas_call(
        partial(_kernel, call),
        grid=(batch, pl.cdiv(length, block_len), pl.cdiv(width, block_lanes)),
        in_specs=[x_spec, angles_spec, angles_spec],
        out_specs=x_spec,
        out_shape=jax.ShapeDtypeStruct((batch, length, width), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
        name="rotary",
    )(x.reshape(batch, length, width), cos.reshape(1, length, call.half), sin.reshape(1, length, call.half))
    return turned.reshape(x.shape)


def _kernel(call: Call, x: Any, cos: Any, sin: Any, out: Any) -> None:
    period = math.lcm(call.head_dim, LANES)
    heads = period // call.head_dim
    c = jnp.concatenate([cos[...], cos[...]] * heads, axis=-1)
    s = jnp.concatenate([-sin[...], sin[...]] * heads, axis=-1)
    is_left = lax.broadcasted_iota(jnp.int32, c.shape, 1) % call.head_dim < call.half
    for start in range(0, x.shape[1], period):
        lanes = pl.ds(start, period)
        values = x[:, lanes].astype(jnp.float32)
        other = pltpu.roll(values, call.half, 1)
        if period > call.head_dim:
            other = jnp.where(is_left, pltpu.roll(values, period - call.half, 1), other)
        out[:, lanes] = (values * c + other * s).astype(out.dtype)


def refuses(call: Call, device: Device) -> str | None:
    """Why the kernel cannot take this call on this device; None where it can."""
    if device.platform != "tpu" or any(old in device.kind for old in ("v2", "v3", "v4")):
        return "needs a TPU v5 or later"
    if call.dtype not in ("bfloat16", "float32"):
        return call.dtype
    if 0 in (call.batch, call.length, call.heads, call.head_dim):
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    period = math.lcm(call.head_dim, LANES)
    width = call.heads * call.head_dim
    lanes = period * max(min(width // period, 1024 // period), 1)
    return [(("block_len", rows), ("block_lanes", lanes)) for rows in (512, 256, 1024)]
