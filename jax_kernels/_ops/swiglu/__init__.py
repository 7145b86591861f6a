"""SwiGLU (Shazeer 2020, arXiv 2002.05202): two projections, one of which opens and closes the other."""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from jax_kernels._ops.swiglu import reference, xla
from jax_kernels._ops.swiglu.call import Call, work, workload
from jax_kernels.dispatch import run
from jax_kernels.implementations import Implementation, kernel_implementation
from jax_kernels.op import Op

__all__ = ["SWIGLU", "Implementation", "swiglu"]

ImplementationName: TypeAlias = Literal["auto", "reference", "xla", "pallas_triton", "pallas_tpu"]

SWIGLU = Op(
    "swiglu",
    __name__,
    Call,
    {
        implementation.name: implementation
        for implementation in (
            Implementation("reference", reference.swiglu),
            Implementation("xla", xla.swiglu),
            *(kernel_implementation(name, "swiglu", f"{__name__}.{name}") for name in ("pallas_triton", "pallas_tpu")),
        )
    },
    # XLA takes the vendor's products, so that a kernel is for where it was measured to be faster.
    {"cpu": ("xla",), "gpu": ("xla", "pallas_triton"), "tpu": ("xla", "pallas_tpu")},
    workload,
    work,
)


def swiglu(x: jax.Array, gate: jax.Array, up: jax.Array, *, implementation: ImplementationName = "auto") -> jax.Array:
    """silu(x @ gate) * (x @ up), of x `[tokens, embed]` and the weights gate and up `[embed, mlp]`.

    Args:
        implementation: which implementation; "auto" takes the fastest for the device. If it does not
            support the call, another runs, with a warning.

    Returns `[tokens, mlp]` in x's type. Products are summed in float32, and the activation is computed in it.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected floating-point values [tokens, embed], got {x.dtype} {x.shape}")
    if gate.ndim != 2 or gate.shape[0] != x.shape[1] or gate.dtype != x.dtype:
        raise ValueError(f"gate: expected {x.dtype} [{x.shape[1]}, mlp] to go with x, got {gate.dtype} {gate.shape}")
    if up.shape != gate.shape or up.dtype != gate.dtype:
        raise ValueError(f"up: expected {gate.dtype} {gate.shape} as gate, got {up.dtype} {up.shape}")
    call = Call(tokens=x.shape[0], embed=x.shape[1], mlp=gate.shape[1], dtype=x.dtype.name)
    out: jax.Array = run(SWIGLU, call, implementation, x, gate, up)
    return out
