"""Rotary for TPUs as a Pallas kernel over x as `[batch, len, heads * head_dim]`, which is how a projection leaves it.

The heads lie side by side along the lanes, and the other of a lane's pair is half a head to its right or to its left: a
row is rolled both ways, and each lane takes what comes from its own head.
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

from jax_kernels._ops.rotary.call import Call, differentiable
from jax_kernels.implementations import Config, Device, is_interpreting

LANES = 128
MOST_LANES = 1024
VMEM_LIMIT_BYTES = 48 * 2**20  # a v5p core has 64 MiB, v5e and v6e 128; a kernel gets 16 unless it asks


@differentiable
def rotary(call: Call, config: Config, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    block_len, block_lanes = (size for _, size in config)
    (batch, length), width = _rows(call), call.heads * call.head_dim
    x_spec = pl.BlockSpec((None, block_len, block_lanes), lambda row, position, lanes: (row, position, lanes))
    angles_spec = pl.BlockSpec((None, block_len, call.half), lambda row, position, lanes: (0, position, 0))
    turned: jax.Array = pl.pallas_call(
        partial(_kernel, call),
        grid=(batch, pl.cdiv(length, block_len), pl.cdiv(width, block_lanes)),
        in_specs=[x_spec, angles_spec, angles_spec],
        out_specs=x_spec,
        out_shape=jax.ShapeDtypeStruct((batch, length, width), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3, vmem_limit_bytes=VMEM_LIMIT_BYTES),
        interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
        name="rotary",
    )(x.reshape(batch, length, width), cos.reshape(1, length, call.half), sin.reshape(1, length, call.half))
    return turned.reshape(x.shape)


def _rows(call: Call) -> tuple[int, int]:
    """The number of rows and their length: rows with angles of their own are one long row."""
    return (1, call.batch * call.length) if call.angles_batch == call.batch else (call.batch, call.length)


def _period(call: Call) -> int:
    """Lanes after which whole heads fill whole registers."""
    return math.lcm(call.head_dim, LANES)


def _kernel(call: Call, x: Any, cos: Any, sin: Any, out: Any) -> None:
    period = _period(call)
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


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernel does not support this call on this device; None if it does."""
    if device.platform != "tpu" or any(old in device.kind for old in ("v2", "v3", "v4")):
        return "needs a TPU v5 or later"
    if call.dtype not in ("bfloat16", "float32"):
        return call.dtype
    if 0 in (call.batch, call.length, call.heads, call.head_dim):
        return "an empty array"
    if _period(call) > MOST_LANES:
        return f"heads of {call.head_dim} fill whole registers only by {_period(call)} lanes"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """As many lanes as whole heads fill, and positions by reasoning: 512 take longer to fetch than a step to begin."""
    (_, length), period = _rows(call), _period(call)
    lanes = period * max(min(call.heads * call.head_dim, MOST_LANES) // period, 1)
    return [
        (("block_len", size), ("block_lanes", lanes))
        for size in dict.fromkeys(min(n, length) for n in (512, 256, 1024))
    ]
