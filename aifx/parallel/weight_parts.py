"""Weights of which each device keeps a part, and which are whole only while a layer runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import linear_call
from jax.typing import DTypeLike

from aifx.specs import widened


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeightPart:
    """A device's part of a weight that `Layout.gather` makes whole.

    Attributes:
        missing: the mesh axes to gather over, by dimension of the whole array; a layer of a stack is without the first.
        dtype: of the whole array, if it is another one.
    """

    array: jax.Array
    missing: tuple[tuple[str, ...], ...] = field(metadata={"static": True})
    dtype: DTypeLike | None = field(default=None, metadata={"static": True})


def cast(x: Any, dtype: DTypeLike | None) -> Any:
    """A floating-point array as `dtype`; others, and with None, as they are."""
    return x.astype(dtype) if dtype is not None and jnp.issubdtype(x.dtype, jnp.floating) else x


def gathered_weight(x: jax.Array, missing: Sequence[tuple[str, ...]], dtype: DTypeLike | None) -> jax.Array:
    """A whole array as `dtype`, of the parts of devices. Its gradient is added up in float32.

    So does torchtitan. In bfloat16, the sum over many devices would lose what each of them adds.
    """

    def gather(_: tuple[()], x: jax.Array) -> jax.Array:
        x = cast(x, dtype)
        for dimension, axes in enumerate(missing):
            x = lax.all_gather(x, axes, axis=dimension, tiled=True) if axes else x
        return x

    def scatter(_: tuple[()], gradient: jax.Array) -> jax.Array:
        gradient = widened(gradient)
        for dimension, axes in enumerate(missing):
            gradient = lax.psum_scatter(gradient, axes, scatter_dimension=dimension, tiled=True) if axes else gradient
        return gradient.astype(x.dtype)

    return linear_call(gather, scatter, (), x)  # type: ignore[no-any-return]
