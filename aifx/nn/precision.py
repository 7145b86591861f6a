"""The precision of the computation, apart from the type in which parameters are kept."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aifx.machine.cpu import cpu_flags
from aifx.specs import Params
from jax_kernels.products import product

MATRIX_UNITS = frozenset({"amx_bf16", "bf16"})
"""Flags of processors with units for products of bfloat16 (Intel, ARM). avx512_bf16 doubles float32's rate at most."""

PRODUCT_ROWS, PRODUCT_REPEATS = 512, 5


def compute_dtype(precision: str, platform: str) -> DTypeLike:
    """auto: float32 on the CPU, bfloat16 on accelerators."""
    if precision == "auto":
        return jnp.float32 if platform == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)


def bfloat16_gain() -> float:
    """The speed of bfloat16 products over float32 ones on this processor, measured in 0.2 s; 1 without such units."""
    return _product_s("float32") / _product_s("bfloat16") if MATRIX_UNITS & cpu_flags() else 1.0


def _product_s(dtype: DTypeLike) -> float:
    x = jax.device_put(jnp.full((PRODUCT_ROWS, PRODUCT_ROWS), 1.0 / PRODUCT_ROWS, dtype), jax.devices("cpu")[0])
    compiled = jax.jit(product).lower(x, x).compile()
    taken = []
    for _ in range(PRODUCT_REPEATS):
        started = time.perf_counter()
        compiled(x, x).block_until_ready()
        taken.append(time.perf_counter() - started)
    return min(taken)


def cast_floating(params: Params, dtype: DTypeLike) -> Params:
    """Floating-point arrays as `dtype`, the others as they are."""
    cast: Params = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    return cast
