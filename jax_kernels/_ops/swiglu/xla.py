"""SwiGLU in plain XLA: its products, and a fused pass over them either way."""

from __future__ import annotations

import jax

from jax_kernels._ops.swiglu.call import Call
from jax_kernels._ops.swiglu.gradient import Pair, activate, d_products, differentiable
from jax_kernels.implementations import Config
from jax_kernels.products import product


def _project(
    call: Call, config: Config, x: jax.Array, gate: jax.Array, up: jax.Array, *, keep: bool
) -> list[jax.Array]:
    # Narrow products, since XLA would write them to memory in float32 otherwise.
    g, u = product(x, gate), product(x, up)
    out = activate(g, u).astype(x.dtype)
    return [out, g, u] if keep else [out]


def _pull(call: Call, config: Config, d_out: jax.Array, g: jax.Array, u: jax.Array) -> Pair:
    d_g, d_u = d_products(d_out, g, u)
    return d_g.astype(g.dtype), d_u.astype(u.dtype)


swiglu = differentiable(_project, _pull)
