"""Products of int8 or float8_e4m3fn operands, which have a float32 scale for each row, column or block."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_kernels._ops.quantized_matmul import reference, xla
from jax_kernels._ops.quantized_matmul.call import Call, work, workload
from jax_kernels._ops.quantized_matmul.quantize import LARGEST, dequantize, quantize
from jax_kernels.dispatch import run
from jax_kernels.implementations import Implementation, kernel_implementation
from jax_kernels.op import Op

__all__ = [
    "QUANTIZED_MATMUL",
    "Implementation",
    "dequantize",
    "quantize",
    "quantized_linear",
    "quantized_matmul",
]

ImplementationName: TypeAlias = Literal["auto", "reference", "xla", "pallas_triton", "pallas_tpu"]

KERNELS = ("pallas_triton", "pallas_tpu")
OUT_DTYPES = ("bfloat16", "float16", "float32")

LONGEST_BLOCK = (2**31 - 1) // 128**2
"""So many products of int8 can be summed in int32, whatever they are."""

QUANTIZED_MATMUL = Op(
    "quantized_matmul",
    __name__,
    Call,
    {
        implementation.name: implementation
        for implementation in (
            Implementation("reference", reference.quantized_matmul),
            Implementation("xla", xla.quantized_matmul),
            *(kernel_implementation(name, "quantized_matmul", f"{__name__}.{name}") for name in KERNELS),
        )
    },
    {"cpu": ("xla",), "gpu": ("pallas_triton", "xla"), "tpu": ("pallas_tpu", "xla")},
    workload,
    work,
)


def quantized_matmul(
    x: jax.Array,
    weight: jax.Array,
    x_scale: jax.Array,
    weight_scale: jax.Array,
    *,
    out_dtype: DTypeLike = jnp.bfloat16,
    implementation: ImplementationName = "auto",
) -> jax.Array:
    """x `[m, k]` @ weight `[k, n]`, both int8 or both float8_e4m3fn, each number times the scale of its block.

    Products of int8 are summed exactly as long as no scale changes, those of fp8 in float32; then scaled and summed in
    float32. It is differentiable by the scales, and by fp8 operands, whose gradients have their type.

    Args:
        x_scale: `[m, k_blocks]` float32, k_blocks a divisor of k: 1 for a scale a row.
        weight_scale: `[k_blocks, n_blocks]` float32, divisors of k and n: `[1, n]` for a scale a column.
        out_dtype: bfloat16, float16 or float32.
        implementation: which implementation; "auto" takes the fastest for the device. If it does not
            support the call, another runs, with a warning.

    Returns `[m, n]`. Its error beside that of quantizing: the rounding to `out_dtype`, and a few of float32.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    _check_operands(x, weight)
    _check_x_scale(x, x_scale)
    _check_weight_scale(weight, weight_scale)
    if jnp.dtype(out_dtype).name not in OUT_DTYPES:
        raise ValueError(f"out_dtype: expected one of {', '.join(OUT_DTYPES)}, got {jnp.dtype(out_dtype)}")
    call = Call(
        m=x.shape[0],
        k=x.shape[1],
        n=weight.shape[1],
        dtype=x.dtype.name,
        x_blocks=x_scale.shape[1],
        weight_blocks=weight_scale.shape[0],
        column_blocks=weight_scale.shape[1],
        out_dtype=jnp.dtype(out_dtype).name,
    )
    if call.dtype == "int8" and call.block_k > LONGEST_BLOCK:
        raise ValueError(
            f"x_scale: expected one for each {LONGEST_BLOCK} of k at most, whose products int32 can sum, "
            f"got one for {call.block_k}"
        )
    out: jax.Array = run(QUANTIZED_MATMUL, call, implementation, x, weight, x_scale, weight_scale)
    return out


def quantized_linear(
    x: jax.Array, weight: jax.Array, weight_scale: jax.Array, *, implementation: ImplementationName = "auto"
) -> jax.Array:
    """Floating-point x `[..., k]` with a quantized weight `[k, n]`: x is quantized to the weight's type on the way.

    A row of x gets a scale for each block of k that the weight has scales for. The gradient is that of the product with
    the dequantized weight, as if x were not rounded (the straight-through estimator of Bengio et al. 2013, arXiv
    1308.3432).

    Args:
        weight_scale: as `quantized_matmul` takes it, where `implementation` is explained too.

    Returns `[..., n]` in x's type.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    if x.ndim == 0 or x.dtype.name not in OUT_DTYPES:
        raise ValueError(f"x: expected {', '.join(OUT_DTYPES)} [..., k], got {x.dtype} {x.shape}")
    _check_weight(weight, x.shape[-1])
    _check_weight_scale(weight, weight_scale)
    out = _linear(implementation, x.reshape(-1, x.shape[-1]), weight, weight_scale)
    return out.reshape(*x.shape[:-1], weight.shape[1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(implementation: ImplementationName, x: jax.Array, weight: jax.Array, weight_scale: jax.Array) -> jax.Array:
    quantized, x_scale = quantize(x, weight.dtype, (1, x.shape[1] // weight_scale.shape[0]))
    return quantized_matmul(quantized, weight, x_scale, weight_scale, out_dtype=x.dtype, implementation=implementation)


def _forward(implementation: ImplementationName, *operands: jax.Array) -> tuple[jax.Array, Any]:
    return _linear(implementation, *operands), operands


def _backward(implementation: ImplementationName, operands: Any, d_out: jax.Array) -> Any:
    def product(x: jax.Array, weight: jax.Array, weight_scale: jax.Array) -> jax.Array:
        return jnp.dot(x, dequantize(weight, weight_scale).astype(x.dtype))

    _, pull = jax.vjp(product, *operands)
    return pull(d_out)


_linear.defvjp(_forward, _backward)


def _check_operands(x: jax.Array, weight: jax.Array) -> None:
    if x.ndim != 2 or x.dtype.name not in LARGEST:
        raise ValueError(f"x: expected {' or '.join(LARGEST)} [m, k], got {x.dtype} {x.shape}")
    _check_weight(weight, x.shape[1])
    if weight.dtype != x.dtype:
        raise ValueError(f"weight: expected {x.dtype} as x, got {weight.dtype}")


def _check_weight(weight: jax.Array, k: int) -> None:
    if weight.ndim != 2 or weight.shape[0] != k or weight.dtype.name not in LARGEST:
        raise ValueError(
            f"weight: expected {' or '.join(LARGEST)} [{k}, n] to go with x, got {weight.dtype} {weight.shape}"
        )


def _check_x_scale(x: jax.Array, x_scale: jax.Array) -> None:
    m, k = x.shape
    if x_scale.ndim != 2 or x_scale.shape[0] != m or not _divides(x_scale.shape[1], k) or x_scale.dtype != jnp.float32:
        raise ValueError(f"x_scale: expected float32 [{m}, divisor of {k}], got {x_scale.dtype} {x_scale.shape}")


def _check_weight_scale(weight: jax.Array, weight_scale: jax.Array) -> None:
    k, n = weight.shape
    divides = weight_scale.ndim == 2 and all(map(_divides, weight_scale.shape, (k, n)))
    if not divides or weight_scale.dtype != jnp.float32:
        raise ValueError(
            f"weight_scale: expected float32 [divisor of {k}, divisor of {n}], "
            f"got {weight_scale.dtype} {weight_scale.shape}"
        )


def _divides(count: int, length: int) -> bool:
    return count > 0 and length % count == 0
