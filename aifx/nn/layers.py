"""Layers as pure functions, besides those that are ops of `jax_kernels`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aifx.nn.quantized import QuantizedMatrix
from jax_kernels.quantized_matmul import quantized_linear


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_matrix(weight: jax.Array | QuantizedMatrix, inputs: int) -> jax.Array | QuantizedMatrix:
    """A weight as `[inputs, outputs]`."""
    return weight if isinstance(weight, QuantizedMatrix) else weight.reshape(inputs, -1)


def linear(x: jax.Array, weight: jax.Array | QuantizedMatrix, bias: jax.Array | None = None) -> jax.Array:
    """`[tokens, inputs] @ [inputs, outputs] + [outputs]`. Two dimensions only: a product over `[batch, seq, inputs]`
    runs 1.5 times slower in a gradient on the CPU."""
    y = quantized_linear(x, *weight) if isinstance(weight, QuantizedMatrix) else x @ weight
    return y if bias is None else y + bias


def linear_at_least_float32(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x @ weight` that keeps the float32 in which a product of narrow numbers is summed.

    The gradient of narrow numbers is a product of narrow ones still: in float32 it would run at half the speed.
    """
    if jnp.promote_types(x.dtype, weight.dtype).itemsize >= 4:
        return linear(x, weight)
    return _float32_of_narrow(x, weight)


@jax.custom_vjp
def _float32_of_narrow(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.matmul(x, weight, preferred_element_type=jnp.float32)


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _float32_of_narrow(x, weight), (x, weight)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    narrow = gradient.astype(jnp.promote_types(x.dtype, weight.dtype))
    return (narrow @ weight.T).astype(x.dtype), (x.T @ narrow).astype(weight.dtype)


_float32_of_narrow.defvjp(_forward, _backward)


def rotary_angles(positions: jax.Array, head_dim: int, theta: float, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines `[batch, seq, head_dim / 2]` of positions `[batch, seq]`, for `rotary` of arrays of `dtype`."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=float) / head_dim)
    angles = positions[..., None] * frequencies
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.cos(angles).astype(wide), jnp.sin(angles).astype(wide)


def gelu(x: jax.Array) -> jax.Array:
    """x times the Gaussian's cumulative distribution (erf)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GPT-2's approximation of `gelu` by a tanh."""
    return jax.nn.gelu(x, approximate=True)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """x with a share `rate` of its elements zeroed and the rest scaled up to keep the mean."""
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
