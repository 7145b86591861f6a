"""Blocks that reach beyond the end of an array, in kernels that Triton compiles: they mask what they load and store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plgpu


def inside(shape: Sequence[int], starts: Sequence[Any], lengths: Sequence[int]) -> jax.Array | None:
    """The part that an array of `lengths` has of the block of `shape` at `starts`; None if blocks divide the array."""
    masks = [
        start + lax.broadcasted_iota(jnp.int32, shape, axis) < length
        for axis, (size, start, length) in enumerate(zip(shape, starts, lengths, strict=True))
        if length % size
    ]
    return reduce(jnp.logical_and, masks) if masks else None


def load(ref: Any, mask: jax.Array | None) -> jax.Array:
    """The block, zero where the array has none of it."""
    block: jax.Array = plgpu.load(ref, mask=mask, other=None if mask is None else 0)
    return block


def store(ref: Any, block: jax.Array, mask: jax.Array | None) -> None:
    plgpu.store(ref, block.astype(ref.dtype), mask=mask)
