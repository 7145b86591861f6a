"""Rotary in plain XLA, which makes one pass over memory of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_kernels._ops.rotary.call import Call, differentiable
from jax_kernels.implementations import Config


@differentiable
def rotary(call: Call, config: Config, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    # The halves are an axis of their own: XLA's CPU code for that is twice as fast as for halves of one axis.
    halves = x.reshape(*x.shape[:-1], 2, call.half).astype(cos.dtype)
    left, right = halves[..., 0, :], halves[..., 1, :]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.stack([left * cos - right * sin, right * cos + left * sin], axis=-2).reshape(x.shape).astype(x.dtype)
