"""Rows of the arrays, of which a block may reach beyond the end: every load and store is masked as it needs."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels._ops.attention.call import Call

SMALLEST_BLOCK = 16  # the smallest side of a product that tensor cores take


def width_of(call: Call) -> int:
    """Columns of a block: head_dim, or the power of two above it."""
    return max(pl.next_power_of_2(call.head_dim), SMALLEST_BLOCK)


def inside(start: Any, size: int, length: int | None) -> Any | None:
    """Which of the rows the array has; None where it has all because blocks divide it or `length` is not given."""
    return None if length is None or length % size == 0 else start + lax.iota(jnp.int32, size) < length


def _reach(call: Call, start: Any, size: int, length: int | None) -> Any | None:
    """`inside` for all columns of the rows, of which there may be more than head_dim."""
    rows, width = inside(start, size, length), width_of(call)
    columns = None if width == call.head_dim else lax.iota(jnp.int32, width) < call.head_dim
    masks = [None if rows is None else rows[:, None], None if columns is None else columns[None, :]]
    known = [jnp.broadcast_to(mask, (size, width)) for mask in masks if mask is not None]
    return reduce(jnp.logical_and, known) if known else None


def load(call: Call, ref: Any, head: tuple[Any, ...], start: Any, size: int, length: int | None) -> jax.Array:
    """Rows of a head, zero beyond the array's end; without `length` they are known to be inside."""
    reach = _reach(call, start, size, length)
    return plgpu.load(ref.at[(pl.ds(start, size), *head)], mask=reach, other=None if reach is None else 0)


def load_row(ref: Any, head: tuple[Any, ...], start: Any, size: int, length: int | None, other: float) -> jax.Array:
    mask = inside(start, size, length)
    return plgpu.load(ref.at[(*head, pl.ds(start, size))], mask=mask, other=None if mask is None else other)


def store(call: Call, ref: Any, start: Any, rows: jax.Array, length: int) -> None:
    size = rows.shape[0]
    plgpu.store(ref.at[pl.ds(start, size)], rows.astype(ref.dtype), mask=_reach(call, start, size, length))
