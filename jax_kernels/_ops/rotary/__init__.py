"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864): pairs of a head turned by angles of its position."""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels._ops.rotary import reference, xla
from jax_kernels._ops.rotary.call import Call, work, workload
from jax_kernels.dispatch import run
from jax_kernels.implementations import Implementation, kernel_implementation
from jax_kernels.op import Op

__all__ = ["ROTARY", "Implementation", "rotary"]

ImplementationName: TypeAlias = Literal["auto", "reference", "xla", "pallas_triton", "pallas_tpu"]

ROTARY = Op(
    "rotary",
    __name__,
    Call,
    {
        implementation.name: implementation
        for implementation in (
            Implementation("reference", reference.rotary),
            Implementation("xla", xla.rotary),
            *(kernel_implementation(name, "rotary", f"{__name__}.{name}") for name in ("pallas_triton", "pallas_tpu")),
        )
    },
    # XLA makes one pass of it too, so that a kernel is for where it was measured to be faster.
    {"cpu": ("xla",), "gpu": ("xla", "pallas_triton"), "tpu": ("xla", "pallas_tpu")},
    workload,
    work,
)


def rotary(x: jax.Array, cos: jax.Array, sin: jax.Array, *, implementation: ImplementationName = "auto") -> jax.Array:
    """Pairs (i, i + head_dim / 2) of x `[batch, len, heads, head_dim]`, as in Hugging Face's Llama, turned by angles.

    Args:
        cos, sin: of the angles, `[batch, len, head_dim / 2]` or `[1, len, head_dim / 2]` for the whole batch, float32
            (float64 for x in float64). They are not differentiated: angles are a function of the position, not trained,
            and their gradient is zero as through `lax.stop_gradient`.
        implementation: which implementation; "auto" takes the fastest for the device. If it does not
            support the call, another runs, with a warning.

    Returns what is computed in float32, shaped and typed as x.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    _check(x, cos, sin)
    batch, length, heads, head_dim = x.shape
    call = Call(batch, length, heads, head_dim, x.dtype.name, angles_batch=cos.shape[0])
    turned: jax.Array = run(ROTARY, call, implementation, x, lax.stop_gradient(cos), lax.stop_gradient(sin))
    return turned


def _check(x: jax.Array, cos: jax.Array, sin: jax.Array) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected floating-point values [batch, len, heads, head_dim], got {x.dtype} {x.shape}")
    batch, length, _, head_dim = x.shape
    if head_dim % 2:
        raise ValueError(f"x: expected an even head_dim, got {head_dim}")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    shapes = [(size, length, head_dim // 2) for size in dict.fromkeys((batch, 1))]
    if cos.shape not in shapes or cos.dtype != dtype:
        words = " or ".join(map(str, shapes))
        raise ValueError(f"cos: expected {dtype} of shape {words} to go with x, got {cos.dtype} {cos.shape}")
    if sin.shape != cos.shape or sin.dtype != dtype:
        raise ValueError(f"sin: expected {dtype} of shape {cos.shape} as cos, got {sin.dtype} {sin.shape}")
