"""Products of bfloat16 as XLA's CPU backend multiplies them fast.

It gives a product to the processor's matrix units only if both operands are row-major. If one is transposed, it widens
both to float32 or multiplies without those units: at a fifth of the rate on an Intel Xeon with AMX. A copy costs less.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from jax_kernels.implementations import current_device


def is_bfloat16_on_cpu(*arrays: jax.Array) -> bool:
    return all(x.dtype == jnp.bfloat16 for x in arrays) and current_device().platform == "cpu"


def row_major(x: jax.Array) -> jax.Array:
    """An operand of a product `[..., rows, columns]`, constrained to be row-major if it is bfloat16 on a CPU.

    Autodiff would transpose the operands for the products of the gradient: define those too, by `jax.custom_vjp`.
    """
    if not is_bfloat16_on_cpu(x):
        return x
    constrained: jax.Array = with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
    return constrained


def product(
    a: jax.Array, b: jax.Array, *, dtype: DTypeLike | None = None, precision: lax.Precision | None = None
) -> jax.Array:
    """`a @ b` of matrices. The result is of `dtype`, or of the operands' type."""
    if not is_bfloat16_on_cpu(a, b):
        return jnp.matmul(a, b, precision=precision, preferred_element_type=dtype)
    rows = a.shape[0]
    if rows == 1:  # which XLA would multiply in a loop, ten times slower than two
        a = jnp.pad(a, ((0, 1), (0, 0)))
    # JAX 0.10.2 widens the operands where the result is narrow.
    wide = jnp.matmul(row_major(a), row_major(b), preferred_element_type=jnp.float32)
    return wide[:rows].astype(dtype or a.dtype)
