"""SwiGLU as it is defined: what every other implementation is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_kernels._ops.swiglu.call import Call
from jax_kernels.implementations import Config


def swiglu(call: Call, config: Config, x: jax.Array, gate: jax.Array, up: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, gate, up = (array.astype(wide) for array in (x, gate, up))
    return (jax.nn.silu(x @ gate) * (x @ up)).astype(call.dtype)
