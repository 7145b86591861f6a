"""Layers as pure functions, other than the ops of `jax_kernels`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p
from jax.typing import DTypeLike

from aifx.nn.lora import LoraBank, LoraMatrix
from aifx.nn.quantized import Int8Table, QuantizedMatrix, SomeMatrix, two_term_product
from aifx.parallel.context import ForwardContext
from jax_kernels._ops.quantized_matmul import quantized_linear
from jax_kernels.dispatch import varying, varying_axes
from jax_kernels.implementations import current_device
from jax_kernels.products import is_bfloat16_on_cpu, product, row_major

LARGEST_PIXEL = 255


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


Matrix: TypeAlias = SomeMatrix | LoraMatrix | LoraBank


def as_matrix(weight: Matrix, inputs: int) -> Matrix:
    """A weight as `[inputs, outputs]`, or a table as `[outputs, inputs]`."""
    if isinstance(weight, LoraMatrix):
        return replace(weight.as_matrix(inputs), base=as_matrix(weight.base, inputs))
    if isinstance(weight, LoraBank):
        return replace(weight, base=as_matrix(weight.base, inputs))
    if isinstance(weight, QuantizedMatrix):
        return weight._replace(values=weight.values.reshape(inputs, -1), scale=weight.scale.reshape(1, -1))
    if isinstance(weight, Int8Table):
        return Int8Table(weight.values.reshape(-1, inputs), weight.scale.reshape(-1))
    return weight.reshape(inputs, -1)


def linear(x: jax.Array, weight: Matrix, bias: jax.Array | None = None) -> jax.Array:
    """`[tokens, inputs] @ [inputs, outputs] + [outputs]`. Two dimensions only: a product over `[batch, seq, inputs]`
    runs 1.5 times slower in a gradient on the CPU."""
    if isinstance(weight, LoraMatrix):
        seen = x if weight.drop is None else weight.drop(x)
        return linear(x, weight.base, bias) + linear(linear(seen, weight.a) * weight.scale, weight.b)
    if isinstance(weight, LoraBank):
        return linear(x, weight.base, bias) + linear(weight.own_columns(linear(x, weight.a)), weight.b)
    if isinstance(weight, QuantizedMatrix | Int8Table):
        y = _quantized_product(x, weight)
    else:
        y = _product(*_varying_alike(x, weight), False) if is_bfloat16_on_cpu(x, weight) else x @ weight
    if bias is None:
        return y
    return _add_bias(*_varying_alike(y, bias)) if is_bfloat16_on_cpu(y, bias) else y + bias


def linear_at_least_float32(x: jax.Array, weight: SomeMatrix) -> jax.Array:
    """`x @ weight` that keeps the float32 in which a product of narrow numbers is summed.

    The gradient of narrow numbers is a product of narrow ones still: in float32 it would run at half the speed.
    """
    if isinstance(weight, QuantizedMatrix | Int8Table):
        return _quantized_product(at_least_float32(x), weight)
    if jnp.promote_types(x.dtype, weight.dtype).itemsize >= 4:
        return x @ weight
    return _product(*_varying_alike(x, weight), True)


def _varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Operands of a `custom_vjp` inside a `jax.shard_map(check_vma=True)`, whose gradients must vary as they do."""
    return varying(arrays, varying_axes(arrays))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, weight: jax.Array, is_wide: bool) -> jax.Array:
    return product(x, weight, dtype=jnp.float32 if is_wide else None)


def _product_forward(x: jax.Array, weight: jax.Array, is_wide: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, weight, is_wide), (x, weight)


def _product_backward(
    is_wide: bool, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    gradient = gradient.astype(jnp.promote_types(x.dtype, weight.dtype))
    # A tied embedding's gradient is transposed. Unconstrained, XLA would multiply the other way round instead.
    d_weight = row_major(product(x.T, gradient))
    return product(gradient, weight.T).astype(x.dtype), d_weight.astype(weight.dtype)


_product.defvjp(_product_forward, _product_backward)


def _quantized_product(x: jax.Array, weight: QuantizedMatrix | Int8Table) -> jax.Array:
    return _table_product(x, weight) if isinstance(weight, Int8Table) else quantized_linear(x, *weight)


@jax.custom_vjp
def _table_product(x: jax.Array, table: Int8Table) -> jax.Array:
    """`[rows, inputs]` times a table. The gradient passes through to x as if it were not rounded."""
    if current_device().platform == "cpu":
        return two_term_product(x, *table)
    # Without the barriers, XLA would make the floating-point matrices of all layers first and keep them to the end.
    (values, scale), x = jax.lax.optimization_barrier((table, x))
    y: jax.Array = (linear(x, values.T.astype(x.dtype)) * scale).astype(x.dtype)
    return y


def _table_product_backward(table: Int8Table, gradient: jax.Array) -> tuple[jax.Array, None]:
    (values, scale), gradient = jax.lax.optimization_barrier((table, gradient))
    return linear((gradient * scale).astype(gradient.dtype), values.astype(gradient.dtype)), None


_table_product.defvjp(lambda x, table: (_table_product(x, table), table), _table_product_backward)


@jax.custom_vjp
def _add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + bias


def _add_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA's CPU backend would sum the rows in emulated bfloat16. A product with ones sums them in the matrix units,
    # which do not take a vector: hence eight rows.
    ones = jnp.ones((8, gradient.shape[0]), gradient.dtype)
    return gradient, product(ones, gradient)[0]


_add_bias.defvjp(lambda y, bias: (_add_bias(y, bias), None), _add_bias_backward)


def gelu(x: jax.Array) -> jax.Array:
    """x times the Gaussian's cumulative distribution (erf)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GPT-2's approximation of `gelu` by a tanh."""
    return jax.nn.gelu(x, approximate=True)


def centred(images: jax.Array, dtype: DTypeLike, epsilon: float = 1e-5) -> jax.Array:
    """Images `[rows, height, width, channels]` of any scale as numbers of `dtype` with mean 0 and variance 1 per image.

    So a camera's exposure does not matter.
    """
    x = images.astype(dtype)
    x = x - jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(1, 2, 3), keepdims=True) + epsilon)


def normalized_pixels(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike) -> jax.Array:
    """Images `[rows, height, width, channels]` with pixels from 0 to 255 as numbers of `dtype`.

    They are normalized by the mean and deviation of each channel (of pixels from 0 to 1), or if there are none, each
    image by its own.
    """
    if not mean:
        return centred(images, dtype)
    means, stds = np.array(mean), np.array(std)
    x = images.astype(jnp.float32) * np.float32(1 / (LARGEST_PIXEL * stds)) - np.float32(means / stds)
    return x.astype(dtype)


def dropout(
    x: jax.Array, rate: float, ctx: ForwardContext, place: int | jax.Array = 0, number: jax.Array | None = None
) -> jax.Array:
    """x `[rows, ..., width]` with a share `rate` of its elements zeroed in training, others scaled to keep its mean.

    What is dropped of a row is a function of the key, its id and the number of the element within the row.

    Args:
        place: number of the place within the model, or within the layer that `in_layer` gave `ctx` for: each draws its
            own.
        number: of each vector `x[...]` within its whole row, of which x may be a part; it broadcasts to `x.shape[:-1]`.
            If None, they are counted in order.
    """
    if not ctx.training or rate == 0.0:
        return x
    assert ctx.key is not None
    assert ctx.row_ids is not None
    key = jax.random.fold_in(ctx.key, place)
    keys = jax.vmap(lambda row: jax.random.key_data(jax.random.fold_in(key, row)))(ctx.row_ids)
    if number is None:
        number = jnp.arange(math.prod(x.shape[1:-1])).reshape(x.shape[1:-1])
    words = [keys[:, i].reshape(-1, *(1,) * (x.ndim - 1)) for i in range(2)]
    counts = _counts(number.astype(jnp.uint32)[..., None], x.shape[-1])
    words += [jnp.expand_dims(count, range(x.ndim - count.ndim)) for count in counts]
    high, low = threefry2x32_p.bind(*words)
    drawn = ((high ^ low) >> 9).astype(jnp.float32) * 2.0**-23  # as jax.random.uniform does
    return jnp.where(drawn < 1.0 - rate, x / (1.0 - rate), 0.0).astype(x.dtype)


def _counts(number: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """number * width + i for each i below `width`, as uint32 `[..., width]` of the upper and the lower half.

    These are the numbers that JAX draws from for the elements of a whole array, which no device has.
    """
    half = jnp.uint32(0xFFFF)
    upper, lower = number >> 16, number & half
    by_low = [part * jnp.uint32(width & 0xFFFF) for part in (lower, upper)]
    by_high = [part * jnp.uint32(width >> 16) for part in (lower, upper)]
    middle = (by_low[0] >> 16) + (by_low[1] & half) + (by_high[0] & half)
    high = by_high[1] + (by_low[1] >> 16) + (by_high[0] >> 16) + (middle >> 16)
    low = number * jnp.uint32(width)
    count = low + jnp.arange(width, dtype=jnp.uint32)
    return high + (count < low), count


def in_layer(ctx: ForwardContext, number: int | jax.Array) -> ForwardContext:
    """`ctx` with a key of this layer's own, so that layers draw differently, unrolled and scanned alike."""
    return ctx if ctx.key is None else replace(ctx, key=jax.random.fold_in(ctx.key, number))
