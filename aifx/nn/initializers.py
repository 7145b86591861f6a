"""First values of arrays: functions of (key, shape, dtype)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aifx.specs import Initializer


@functools.cache  # one function for each deviation, by which arrays that are made alike are known
def normal(stddev: float) -> Initializer:
    """Gaussian of this standard deviation."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return (stddev * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return init


@functools.cache
def uniform(bound: float) -> Initializer:
    """Uniform from -bound to bound."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound).astype(dtype)

    return init


@functools.cache
def constant(value: float) -> Initializer:
    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jnp.full(shape, value, dtype)

    return init


def int8(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Whole numbers from -127 to 127."""
    return jax.random.randint(key, shape, -127, 128, jnp.int32).astype(dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return jnp.ones(shape, dtype)
