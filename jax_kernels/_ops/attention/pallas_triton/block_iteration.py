"""Which blocks of the other side a program walks over, and who in them sees whom."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.pallas_triton.memory import load_row


class BlockRange(NamedTuple):
    """Rows `[start, stop)` of the other side that some of the held rows share; all of them share `whole`."""

    start: Any
    stop: Any
    whole: tuple[Any, Any]


def keys_seen(call: Call, position: Any, size: int) -> BlockRange:
    """Keys that the `size` queries from `position` on see, segments aside."""
    start = 0 if call.window is None else position - call.window + 1
    if not call.causal:
        return BlockRange(start, call.kv_len, (0, call.kv_len))
    return BlockRange(start, position + size, (0, position + 1))


def queries_seeing(call: Call, index: Any, size: int) -> BlockRange:
    """Queries that see the `size` keys of which the first is where query `index` stands."""
    stop = call.q_len if call.window is None else index + size - 1 + call.window
    if not call.causal:
        return BlockRange(0, stop, (0, call.q_len))
    return BlockRange(index, stop, (index + size - 1, call.q_len))


def walk(call: Call, step: Callable[..., Any], carry: Any, rows: BlockRange, length: int, block: int) -> Any:
    """`step(start, carry, masked)` for each block of rows, masked where not all see it or the array ends in it."""

    def blocks(row: Any, up: int = 0) -> Any:
        row = row if isinstance(row, int) else jnp.clip(row, 0, length)
        return (row + up) // block if isinstance(row, int) else lax.div(row + up, block)

    def loop(first: Any, last: Any, carry: Any, masked: bool) -> Any:
        return lax.fori_loop(jnp.int32(first), jnp.int32(last), lambda i, x: step(i * block, x, masked), carry)

    first, last = blocks(rows.start), blocks(rows.stop, block - 1)
    # A window's blocks would need three loops, where ptxas made Hopper wait for each product of dk and dv (C7515).
    if call.has_segments or call.window is not None:
        return loop(first, last, carry, masked=True)
    whole_first, whole_last = blocks(rows.whole[0], block - 1), blocks(rows.whole[1])
    if not isinstance(whole_first, int):
        whole_first = jnp.minimum(whole_first, last)
        carry = loop(first, whole_first, carry, masked=True)
    if isinstance(whole_last, int) and length % block == 0:
        return loop(whole_first, last, carry, masked=False)
    whole_last = jnp.clip(whole_last, whole_first, last)
    carry = loop(whole_first, whole_last, carry, masked=False)
    return loop(whole_last, last, carry, masked=True)


def indices(ids: Any | None, start: Any, size: int, length: int, axis: int) -> tuple[jax.Array, jax.Array | None]:
    """Indices of rows and their segments, if there are any, laid along one axis of a block of scores."""
    segments = None if ids is None else jnp.expand_dims(load_row(ids, (), start, size, length, 0), 1 - axis)
    return jnp.expand_dims(start + lax.iota(jnp.int32, size), 1 - axis), segments


def sees(call: Call, block_k: int, offset: Any, queries: Any, keys: Any) -> Any | None:
    """Who of two `indices` sees whom, booleans that broadcast to the block's scores; None where all see all."""
    (query, query_segment), (key, key_segment) = queries, keys
    conditions: list[Any] = []
    if call.kv_len % block_k:
        conditions.append(key < call.kv_len)
    if call.causal:
        conditions.append(key <= query + offset)
    if call.window is not None:
        conditions.append(key > query + (offset - call.window))
    if call.has_segments:
        conditions.append(query_segment == key_segment)
    return reduce(jnp.logical_and, conditions) if conditions else None
