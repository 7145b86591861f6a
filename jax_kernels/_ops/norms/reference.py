"""Both norms as they are defined: what every other implementation is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_kernels._ops.norms.call import Call
from jax_kernels._ops.norms.formulas import added
from jax_kernels.implementations import Config


def norm(
    call: Call, config: Config, x: jax.Array, scale: jax.Array, bias: jax.Array | None, residual: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Out and, with a residual, the sum that was normalized; both `[rows, embed]` as x."""
    total, values = added(x, residual)
    if call.is_centred:
        values -= jnp.mean(values, axis=-1, keepdims=True)
    out = values / jnp.sqrt(jnp.mean(jnp.square(values), axis=-1, keepdims=True) + call.epsilon)
    out *= scale.astype(values.dtype)
    if bias is not None:
        out += bias.astype(values.dtype)
    return out.astype(x.dtype), None if residual is None else total
