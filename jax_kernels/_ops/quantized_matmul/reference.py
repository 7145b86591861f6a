"""The product as it is defined, a block of scales at a time: what every other implementation is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels._ops.quantized_matmul.call import Call
from jax_kernels.implementations import Config


def quantized_matmul(
    call: Call, config: Config, x: jax.Array, weight: jax.Array, x_scale: jax.Array, weight_scale: jax.Array
) -> jax.Array:
    """`[m, n]` of `out_dtype`."""
    columns = jnp.repeat(weight_scale, call.n // call.column_blocks, axis=1)
    total = jnp.zeros((call.m, call.n), jnp.float32)
    for block in range(call.num_blocks):
        at = slice(block * call.block_k, (block + 1) * call.block_k)
        x_block, weight_block = x[:, at].astype(call.accumulator), weight[at].astype(call.accumulator)
        products = jnp.dot(x_block, weight_block, precision=lax.Precision.HIGHEST).astype(jnp.float32)
        of_x, of_weight = call.scale_of(block)
        total += products * x_scale[:, of_x, None] * columns[of_weight]
    return total.astype(call.out_dtype)
