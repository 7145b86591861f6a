"""The tiles of the scores that a kernel computes, with a mask or without."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.pallas_mosaic_gpu.warpgroup import Scalar, load_vector, plgpu

Span: TypeAlias = tuple[Scalar, Scalar, Scalar, Scalar]  # start, whole_start, whole_stop, stop: see `Tiling.span`

WARPGROUPS = 2  # that compute
FAR = 2**30  # positions away: no limit


class Side(NamedTuple):
    """The arrays along queries, or along keys.

    In shared memory each has an axis of tiles or slots instead of batches and heads, and matrices one of parts, which
    share out the columns. Slots have two barriers, `filled` and `empty`.
    """

    matrices: tuple[Any, ...]  # [batch, len, heads, head_dim]
    vectors: tuple[Any, ...]  # [batch, heads, len]; segment ids, of one head, are the last
    barriers: tuple[Any, ...] = ()

    def at(self, index: Scalar) -> Side:
        return Side(*(tuple(x.at[index] for x in refs) for refs in self))


@dataclass(frozen=True)
class Tiling:
    """The scores of a head are cut into tiles of rows, and each tile into blocks that it walks through.

    Attributes:
        of_keys: whether the rows are keys, and what is walked through queries, or the other way around.
        rows: of a computing warpgroup.
        block: columns of a block, a slot's rows of the other side.
        stages: slots of a ring.
        parts: of the columns of the sums, where both warpgroups have the same rows: one a warpgroup.
    """

    call: Call
    of_keys: bool
    rows: int
    block: int
    stages: int
    parts: int = 1

    @property
    def groups(self) -> int:
        """Warpgroups with rows of their own."""
        return WARPGROUPS // self.parts

    @property
    def length(self) -> int:
        return self.call.kv_len if self.of_keys else self.call.q_len

    @property
    def repeats(self) -> int:
        """Heads of the other side that each head of this one meets."""
        return self.call.group if self.of_keys else 1

    @property
    def tile_rows(self) -> int:
        """Rows of a tile, over all warpgroups that have rows of their own."""
        return self.groups * self.rows

    @property
    def tiled_length(self) -> int:
        """`length`, rounded up to whole tiles."""
        return pl.cdiv(self.length, self.tile_rows) * self.tile_rows

    @property
    def grid(self) -> tuple[int, int, int]:
        """Batch, tiles and heads; heads that share keys run together."""
        call = self.call
        tiles = self.tiled_length // self.tile_rows
        return call.batch, tiles, call.num_kv_heads if self.of_keys else call.num_heads

    def span(self, first: Scalar, last: Scalar, offset: Scalar) -> Span:
        """Blocks `start` to `stop` of the queries that see keys `first` to `last`, or of the keys that queries `first`
        to `last` see; all see all of those from `whole_start` to `whole_stop`."""
        call = self.call
        window = FAR if call.window is None else call.window
        if self.of_keys:  # queries past the end need no mask, as they have no gradient
            length, whole = call.q_len, call.q_len + self.block
            low, high = -offset if call.causal else -FAR, window - offset
        else:
            length, whole = call.kv_len, call.kv_len
            low, high = offset + 1 - window, offset + 1 if call.causal else FAR

        def blocks(row: Scalar, limit: int, more: int = 0) -> Scalar:
            return lax.div(jnp.clip(jnp.int32(row), 0, limit) + more, jnp.int32(self.block))

        start = blocks(first + low, length)
        stop = jnp.maximum(blocks(last + high, length, self.block - 1), start)
        whole_start = jnp.clip(blocks(last + low, whole, self.block - 1), start, stop)
        return start, whole_start, jnp.clip(blocks(first + high, whole), whole_start, stop), stop

    def walk(self, span: Span, step: Callable[..., Any], carry: Any) -> Any:
        """Runs carry = step(index, carry, masked=...) over the blocks of a span."""
        call, (start, whole_start, whole_stop, stop) = self.call, span
        masked, whole = partial(step, masked=True), partial(step, masked=False)
        if call.has_segments:
            return lax.fori_loop(start, stop, masked, carry)
        edges = call.window is not None, call.causal or call.kv_len % self.block > 0
        before, after = (call.causal, edges[0]) if self.of_keys else edges
        carry = lax.fori_loop(start, whole_start, masked, carry) if before else carry
        carry = lax.fori_loop(whole_start, whole_stop, whole, carry)
        return lax.fori_loop(whole_stop, stop, masked, carry) if after else carry

    def mask(self, x: jax.Array, starts: tuple[Scalar, Scalar], offset: Scalar, sides: tuple[Side, Side]) -> jax.Array:
        """-inf where a query does not see a key. `starts` and `sides` are those of the rows and of the columns."""
        call, q_axis = self.call, 1 if self.of_keys else 0
        iota = partial(plgpu.broadcasted_iota, jnp.int32, x.shape, layout=plgpu.Layout.WGMMA)
        key, k_start = iota(1 - q_axis), starts[1 - q_axis]
        position = iota(q_axis) + (starts[q_axis] + offset - k_start)  # of a query, from the block's first key on
        seen = []
        if not self.of_keys and call.kv_len % self.block:
            seen.append(key < call.kv_len - k_start)
        if call.causal:
            seen.append(key <= position)
        if call.window is not None:
            seen.append(key > position - call.window)
        if call.has_segments:
            rows, columns = (side.vectors[-1] for side in sides)
            seen.append(load_vector(rows, x.shape, 0) == load_vector(columns, x.shape, 1))
        return jnp.where(reduce(operator.and_, seen), x, -jnp.inf)
