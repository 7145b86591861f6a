"""The gradient of every implementation: that of the product of the dequantized operands, which is the same function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels._ops.quantized_matmul.call import Call
from jax_kernels._ops.quantized_matmul.quantize import dequantize
from jax_kernels.implementations import Config

Run = Callable[[Call, Config, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def differentiable(run: Run) -> Run:
    """`run` with a gradient by the scales, and by the operands where they are floating point, in their type.

    Two products of float32: no block of scales needs one of its own, as the way forward does.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def implementation(call: Call, config: Config, *operands: jax.Array) -> jax.Array:
        return run(call, config, *operands)

    def forward(call: Call, config: Config, *operands: jax.Array) -> tuple[jax.Array, Any]:
        return run(call, config, *operands), operands

    def backward(call: Call, config: Config, operands: Any, d_out: jax.Array) -> Any:
        _, pull = jax.vjp(_dequantized_product, *operands)
        return pull(d_out.astype(jnp.float32))

    implementation.defvjp(forward, backward)
    return implementation


def _dequantized_product(x: jax.Array, weight: jax.Array, x_scale: jax.Array, weight_scale: jax.Array) -> jax.Array:
    return jnp.dot(dequantize(x, x_scale), dequantize(weight, weight_scale), precision=lax.Precision.HIGHEST)
