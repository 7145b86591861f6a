"""Normalization of each row, root mean square and layer, with the addition of a residual before it in the same pass."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, overload

import jax
import jax.numpy as jnp

from jax_kernels._ops.norms import reference, xla
from jax_kernels._ops.norms.call import Call, work, workload
from jax_kernels.dispatch import run
from jax_kernels.implementations import Implementation, Platform, kernel_implementation
from jax_kernels.op import Op

__all__ = ["LAYER_NORM", "RMS_NORM", "Implementation", "layer_norm", "rms_norm"]

ImplementationName: TypeAlias = Literal["auto", "reference", "xla", "pallas_triton", "pallas_tpu"]

KERNELS = ("pallas_triton", "pallas_tpu")


def _op(name: str) -> Op:
    implementations = (
        Implementation("reference", reference.norm),
        Implementation("xla", xla.norm),
        *(kernel_implementation(kernel, name, f"{__name__}.{kernel}") for kernel in KERNELS),
    )
    preference: dict[Platform, tuple[str, ...]] = {
        "cpu": ("xla",),
        "gpu": ("pallas_triton", "xla"),
        "tpu": ("pallas_tpu", "xla"),
    }
    return Op(
        name,
        __name__,
        Call,
        {implementation.name: implementation for implementation in implementations},
        preference,
        workload,
        work,
    )


RMS_NORM, LAYER_NORM = _op("rms_norm"), _op("layer_norm")


@overload
def rms_norm(
    x: jax.Array,
    scale: jax.Array,
    *,
    residual: None = ...,
    epsilon: float = ...,
    implementation: ImplementationName = ...,
) -> jax.Array: ...


@overload
def rms_norm(
    x: jax.Array,
    scale: jax.Array,
    *,
    residual: jax.Array,
    epsilon: float = ...,
    implementation: ImplementationName = ...,
) -> tuple[jax.Array, jax.Array]: ...


def rms_norm(
    x: jax.Array,
    scale: jax.Array,
    *,
    residual: jax.Array | None = None,
    epsilon: float = 1e-6,
    implementation: ImplementationName = "auto",
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """x `[..., embed]` by the root of its mean square over the last axis, times scale `[embed]`.

    Args:
        residual: as x, is added to it first; the sum, rounded to x's type, is normalized and returned as well.
        epsilon: is added to the mean square.
        implementation: which implementation; "auto" takes the fastest for the device. If it does not
            support the call, another runs, with a warning.

    Returns the output, shaped as x, and with a residual the pair (output, x + residual). Statistics are float32 or
    wider, whatever x is.

    Raises:
        ValueError: naming the argument that does not fit.

    Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    return _norm(RMS_NORM, x, scale, None, residual, epsilon, implementation)


@overload
def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = ...,
    *,
    residual: None = ...,
    epsilon: float = ...,
    implementation: ImplementationName = ...,
) -> jax.Array: ...


@overload
def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = ...,
    *,
    residual: jax.Array,
    epsilon: float = ...,
    implementation: ImplementationName = ...,
) -> tuple[jax.Array, jax.Array]: ...


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None = None,
    *,
    residual: jax.Array | None = None,
    epsilon: float = 1e-6,
    implementation: ImplementationName = "auto",
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """x `[..., embed]` with zero mean and unit variance over the last axis, times scale plus bias `[embed]`.

    The other arguments, the results and the errors are those of `rms_norm`; epsilon is added to the variance.

    Source: Ba, Kiros and Hinton 2016, arXiv 1607.06450.
    """
    return _norm(LAYER_NORM, x, scale, bias, residual, epsilon, implementation)


def _norm(
    op: Op,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
    epsilon: float,
    implementation: ImplementationName,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    _check(x, scale, bias, residual, epsilon)
    *leading, embed = x.shape
    call = Call(
        kind="rms_norm" if op is RMS_NORM else "layer_norm",
        rows=math.prod(leading),
        embed=embed,
        dtype=x.dtype.name,
        param_dtype=scale.dtype.name,
        epsilon=float(epsilon),
        has_bias=bias is not None,
        has_residual=residual is not None,
    )
    flat = (call.rows, embed)
    residual = None if residual is None else residual.reshape(flat)
    out, total = run(op, call, implementation, x.reshape(flat), scale, bias, residual)
    out = out.reshape(x.shape)
    return out if total is None else (out, total.reshape(x.shape))


def _check(x: jax.Array, scale: jax.Array, bias: jax.Array | None, residual: jax.Array | None, epsilon: float) -> None:
    if x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected floating-point values [..., embed], got {x.dtype} {x.shape}")
    if scale.shape != x.shape[-1:] or not jnp.issubdtype(scale.dtype, jnp.floating):
        raise ValueError(f"scale: expected floating-point values {x.shape[-1:]}, got {scale.dtype} {scale.shape}")
    if bias is not None and (bias.shape != scale.shape or bias.dtype != scale.dtype):
        raise ValueError(f"bias: expected {scale.dtype} {scale.shape} as scale, got {bias.dtype} {bias.shape}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(f"residual: expected {x.dtype} {x.shape} as x, got {residual.dtype} {residual.shape}")
    if not (math.isfinite(epsilon) and epsilon >= 0.0):
        raise ValueError(f"epsilon: expected 0 or more, got {epsilon!r}")
