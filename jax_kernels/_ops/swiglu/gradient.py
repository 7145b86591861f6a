"""The activation, and the gradient of swiglu as its implementations share it.

The way forward keeps the two products, and not what the activation makes of them: that is quicker computed again than
read. The way back is a pass over them, which each implementation makes in its own way, and then products alone, in
which nothing is left to fuse: those are XLA's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels._ops.swiglu.call import Call
from jax_kernels.implementations import Config
from jax_kernels.products import product

Pair: TypeAlias = tuple[jax.Array, jax.Array]


def activate(g: jax.Array, u: jax.Array) -> jax.Array:
    """silu(g) * u, in float32 or wider."""
    g, u = _finite_below(_wide(g)), _wide(u)
    return g * jax.nn.sigmoid(g) * u


def d_products(d_out: jax.Array, g: jax.Array, u: jax.Array) -> Pair:
    """The gradients of g and u, in float32 or wider."""
    d_out, g, u = _wide(d_out), _finite_below(_wide(g)), _wide(u)
    open_ = jax.nn.sigmoid(g)
    silu = g * open_
    return d_out * u * (open_ + silu * (1.0 - open_)), d_out * silu


def _finite_below(g: jax.Array) -> jax.Array:
    """g with its least finite value in place of -inf, which float16 makes of products below -65,504: silu is 0 there,
    and -inf * 0 is NaN."""
    return jnp.where(g == -jnp.inf, jnp.finfo(g.dtype).min, g)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


Project: TypeAlias = Callable[..., list[jax.Array]]
"""(call, config, x, gate, up, keep=) -> out, and the products x @ gate and x @ up besides if they are to be kept."""

Pull: TypeAlias = Callable[[Call, Config, jax.Array, jax.Array, jax.Array], Pair]
"""(call, config, d_out, g, u) -> the gradients of g and u."""


def differentiable(
    project: Project, pull: Pull, precision: lax.Precision | None = None
) -> Callable[[Call, Config, jax.Array, jax.Array, jax.Array], jax.Array]:
    """An implementation of swiglu from its way forward and its pass over the products.

    Args:
        precision: of XLA's products of float32, which are rounded on a GPU or TPU unless it says otherwise.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def swiglu(call: Call, config: Config, x: jax.Array, gate: jax.Array, up: jax.Array) -> jax.Array:
        (out,) = project(call, config, x, gate, up, keep=False)
        return out

    def forward(call: Call, config: Config, x: jax.Array, gate: jax.Array, up: jax.Array) -> tuple[jax.Array, Any]:
        out, g, u = project(call, config, x, gate, up, keep=True)
        return out, (x, gate, up, g, u)

    def backward(call: Call, config: Config, residuals: Any, d_out: jax.Array) -> tuple[jax.Array, ...]:
        x, gate, up, g, u = residuals
        d_g, d_u = pull(call, config, d_out, g, u)
        dot = partial(product, precision=precision if call.dtype == "float32" else None)
        # XLA adds up within the second product. To make one of both, the weights would have to be copied together.
        return dot(d_g, gate.T) + dot(d_u, up.T), dot(x.T, d_g), dot(x.T, d_u)

    swiglu.defvjp(forward, backward)
    return swiglu
