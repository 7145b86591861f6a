"""The product in plain XLA: one product where a row has one scale, else a loop over the blocks of scales.

XLA fuses the scales into the product. Where a device does not multiply float8_e4m3fn, it widens the operands itself, on
the way to the product: compiled so for an A100 and TPUs up to v6e.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels.forms import Config, current_device
from jax_kernels.quantized_matmul.call import Call
from jax_kernels.quantized_matmul.gradient import differentiable
from jax_kernels.quantized_matmul.quantize import dequantize


@differentiable
def quantized_matmul(
    call: Call, config: Config, x: jax.Array, weight: jax.Array, x_scale: jax.Array, weight_scale: jax.Array
) -> jax.Array:
    """`[m, n]` of `out_dtype`."""
    if call.num_blocks > 1 and call.dtype != "int8" and current_device().platform == "cpu":
        # A CPU multiplies neither type but int8: 0.6 to 0.9 times the loop's time.
        out = jnp.dot(dequantize(x, x_scale), dequantize(weight, weight_scale), precision=lax.Precision.HIGHEST)
        return out.astype(call.out_dtype)
    columns = jnp.repeat(weight_scale, call.n // call.column_blocks, axis=1)

    def add(total: jax.Array, block: jax.Array | int) -> tuple[jax.Array, None]:
        at, (of_x, of_weight) = block * call.block_k, call.scale_of(block)
        x_block = lax.dynamic_slice_in_dim(x, at, call.block_k, axis=1)
        weight_block = lax.dynamic_slice_in_dim(weight, at, call.block_k, axis=0)
        x_factor = lax.dynamic_slice_in_dim(x_scale, of_x, 1, axis=1)
        weight_factor = lax.dynamic_slice_in_dim(columns, of_weight, 1, axis=0)
        return total + _product(call, x_block, weight_block) * x_factor * weight_factor, None

    if call.num_blocks == 1:
        return (_product(call, x, weight) * x_scale * columns).astype(call.out_dtype)
    total, _ = lax.scan(add, jnp.zeros((call.m, call.n), jnp.float32), jnp.arange(call.num_blocks))
    return total.astype(call.out_dtype)


def _product(call: Call, x: jax.Array, weight: jax.Array) -> jax.Array:
    # Without the highest precision, Hopper's units may sum products of fp8 in 14 bits.
    products = jnp.dot(x, weight, precision=lax.Precision.HIGHEST, preferred_element_type=call.accumulator)
    return products.astype(jnp.float32)
