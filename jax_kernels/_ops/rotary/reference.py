"""Rotary as it is defined: what every other implementation is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_kernels._ops.rotary.call import Call
from jax_kernels.implementations import Config


def rotary(call: Call, config: Config, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    left, right = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
