"""Arrays as int8 or float8_e4m3fn with a scale for each block, and back."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
"""By type, what the absolute maximum of a block becomes."""

Block: TypeAlias = tuple[int | None, int | None]


def quantize(values: jax.Array, dtype: DTypeLike, block: Block) -> tuple[jax.Array, jax.Array]:
    """`values` `[..., rows, columns]` as `dtype`, and the float32 scale of each block of them.

    Symmetric: the absolute maximum of a block becomes the largest number of the type, and the rest is rounded to the
    nearest. A block of zeros stays one; what is not finite makes its block's scale so, and with it what it meets.

    Args:
        values: floating point.
        dtype: int8 or float8_e4m3fn.
        block: (rows, columns) that share a scale; None for all of them.

    Returns the quantized values and their scales, `[..., rows / block rows, columns / block columns]`.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    name = jnp.dtype(dtype).name
    if name not in LARGEST:
        raise ValueError(f"dtype: expected one of {', '.join(LARGEST)}, got {name}")
    if values.ndim < 2 or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"values: expected floating-point [..., rows, columns], got {values.dtype} {values.shape}")
    lengths = values.shape[-2:]
    rows, columns = (length if size is None else size for size, length in zip(block, lengths, strict=True))
    if rows < 1 or columns < 1 or lengths[0] % rows or lengths[1] % columns:
        raise ValueError(f"block: expected sizes that divide {lengths}, or None, got {block}")
    wide = _blocks(values, lengths[0] // rows, lengths[1] // columns)
    wide = wide.astype(jnp.promote_types(values.dtype, jnp.float32))
    scale = jnp.max(jnp.abs(wide), axis=(-3, -1), keepdims=True, initial=0.0) / LARGEST[name]
    # At least the smallest number that divides without a flush to zero: so zeros are zeros, not 0 / 0.
    scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny).astype(jnp.float32)
    steps = jnp.clip(wide / scale, -LARGEST[name], LARGEST[name])
    quantized = (jnp.round(steps) if name == "int8" else steps).astype(name)
    return quantized.reshape(values.shape), scale[..., 0, :, 0]


def dequantize(values: jax.Array, scale: jax.Array) -> jax.Array:
    """Quantized values `[..., rows, columns]`, each times the scale of its block, in float32.

    Args:
        scale: `[..., row blocks, column blocks]`, as `quantize` gives it.
    """
    blocks = _blocks(values, *scale.shape[-2:])
    return (blocks.astype(jnp.float32) * scale[..., :, None, :, None]).reshape(values.shape)


def _blocks(values: jax.Array, num_rows: int, num_columns: int) -> jax.Array:
    """`[..., row blocks, rows, column blocks, columns]`"""
    *outer, rows, columns = values.shape
    return values.reshape(*outer, num_rows, rows // max(num_rows, 1), num_columns, columns // max(num_columns, 1))
