"""Both norms in plain XLA, with the gradient written out: what was normalized is kept, and one or two numbers a row.

Differentiated by JAX, a norm keeps several arrays of its size, and XLA writes out more where loops share a product.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels._ops.norms import formulas
from jax_kernels._ops.norms.call import Call
from jax_kernels.implementations import Config, current_device


def norm(
    call: Call, config: Config, x: jax.Array, scale: jax.Array, bias: jax.Array | None, residual: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Out and, with a residual, the sum that was normalized; both `[rows, embed]` as x."""
    out, total = _norm(call, x, scale, bias, residual)
    return out, total


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(call: Call, x: jax.Array, scale: jax.Array, bias: jax.Array | None, residual: jax.Array | None) -> Any:
    return _forward(call, x, scale, bias, residual)[0]


def _forward(
    call: Call, x: jax.Array, scale: jax.Array, bias: jax.Array | None, residual: jax.Array | None
) -> tuple[Any, Any]:
    kept, values = formulas.added(x, residual)
    if x.dtype == jnp.bfloat16 and residual is not None:
        # On a GPU XLA leaves out a rounding that is widened again at once, unless it is asked for by name.
        values = lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    wide = values.dtype
    stats = formulas.statistics(call, [values])
    out = formulas.scaled(values, stats, scale.astype(wide), None if bias is None else bias.astype(wide))
    return (out.astype(x.dtype), None if residual is None else kept), (kept, stats, scale, bias)


def _backward(call: Call, saved: Any, cotangents: tuple[jax.Array, jax.Array | None]) -> tuple[Any, ...]:
    (kept, stats, scale, bias), (d_out, d_total) = saved, cotangents
    values, weights, d_outs = (array.astype(stats.reciprocal.dtype) for array in (kept, scale, d_out))
    pulls = _pulls_on_cpu if current_device().platform == "cpu" else formulas.pulls
    d_values, d_scale = formulas.gradients(
        values, stats, weights, d_outs, pulls(call, stats, [(values, weights, d_outs)])
    )
    if d_total is not None:
        d_values += d_total.astype(d_values.dtype)
    d_x = d_values.astype(kept.dtype)
    d_scale = jnp.sum(d_scale, axis=0).astype(scale.dtype)
    d_bias = None if bias is None else jnp.sum(d_outs, axis=0).astype(bias.dtype)
    return d_x, d_scale, d_bias, None if d_total is None else d_x


_norm.defvjp(_forward, _backward)


def _pulls_on_cpu(call: Call, stats: formulas.Statistics, pieces: Any) -> formulas.Pulls:
    """`formulas.pulls` as products with scale: in sums of its own, XLA would first write scale out for every row."""
    [(values, scale, d_out)] = pieces
    dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)
    along = dot(d_out * (formulas.centred(values, stats) * stats.reciprocal), scale)[:, None] / call.embed
    return formulas.Pulls(along, dot(d_out, scale)[:, None] / call.embed if call.is_centred else None)
