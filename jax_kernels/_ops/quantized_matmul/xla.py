"""The product in plain XLA: one product where no scale changes along k, else a loop over the blocks of scales.

XLA fuses the scales into the product. Where a device does not multiply float8_e4m3fn, XLA widens the operands on the
way to the product: compiled so for an A100 and for TPUs up to v6e. A CPU multiplies int8 as it is, in 0.1 to 0.6 times
the time that it takes when both are made float32 first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels._ops.quantized_matmul.call import Call
from jax_kernels._ops.quantized_matmul.gradient import differentiable
from jax_kernels._ops.quantized_matmul.quantize import dequantize
from jax_kernels.implementations import Config, current_device

FEW_ROWS, PIECE = 8, 256
"""On a CPU: XLA copies a weight as int32 for one row and reorders it for a few; a piece of k stays in the cache
meanwhile. One row by 2,048 x 8,192 takes a thirtieth of the time so, 8 rows a third."""


@differentiable
def quantized_matmul(
    call: Call, config: Config, x: jax.Array, weight: jax.Array, x_scale: jax.Array, weight_scale: jax.Array
) -> jax.Array:
    """`[m, n]` of `out_dtype`."""
    if call.num_blocks > 1 and call.dtype != "int8" and _on_cpu():
        # The products are of float32 anyway: one of them takes about 0.7 times the time of many.
        out = jnp.dot(dequantize(x, x_scale), dequantize(weight, weight_scale), precision=lax.Precision.HIGHEST)
        return out.astype(call.out_dtype)
    columns = jnp.repeat(weight_scale, call.n // call.column_blocks, axis=1)
    if call.num_blocks == 1:
        return (_product(call, x, weight) * x_scale * columns).astype(call.out_dtype)

    def add(block: jax.Array, total: jax.Array) -> jax.Array:
        of_x, of_weight = call.scale_of(block)
        x_factor = lax.dynamic_slice_in_dim(x_scale, of_x, 1, axis=1)
        weight_factor = lax.dynamic_slice_in_dim(columns, of_weight, 1, axis=0)
        products = _product(call, *_piece(x, weight, block, call.block_k))
        return total + products * x_factor * weight_factor

    total: jax.Array = lax.fori_loop(0, call.num_blocks, add, jnp.zeros_like(x, jnp.float32, shape=(call.m, call.n)))
    return total.astype(call.out_dtype)


def _product(call: Call, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Summed in the accumulator, as float32."""

    def dot(x: jax.Array, weight: jax.Array) -> jax.Array:
        # Without the highest precision, Hopper's units may sum products of fp8 in 14 bits.
        return jnp.dot(x, weight, precision=lax.Precision.HIGHEST, preferred_element_type=call.accumulator)

    if call.m > FEW_ROWS or x.shape[1] <= PIECE or call.dtype != "int8" or not _on_cpu():
        return dot(x, weight).astype(jnp.float32)
    count = x.shape[1] // PIECE
    rest = dot(x[:, count * PIECE :], weight[count * PIECE :])
    sums: jax.Array = lax.fori_loop(0, count, lambda at, sums: sums + dot(*_piece(x, weight, at, PIECE)), rest)
    return sums.astype(jnp.float32)


def _piece(x: jax.Array, weight: jax.Array, index: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """A piece of both operands along k."""
    return (
        lax.dynamic_slice_in_dim(x, index * size, size, axis=1),
        lax.dynamic_slice_in_dim(weight, index * size, size, axis=0),
    )


def _on_cpu() -> bool:
    return current_device().platform == "cpu"
