"""The precision of the computation, apart from that of the parameters, which stay float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aifx.nn.specs import Params


def compute_dtype(precision: str, platform: str) -> DTypeLike:
    """auto: float32 on the CPU, where bfloat16 is slower; bfloat16 on accelerators."""
    if precision == "auto":
        return jnp.float32 if platform == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)


def cast_floating(params: Params, dtype: DTypeLike) -> Params:
    """Floating-point arrays as `dtype`, the others as they are."""
    cast: Params = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    return cast
