"""Which blocks of scores a kernel visits in which order, and the pieces of the arrays that each visit is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl

from jax_kernels._ops.attention.call import Call

Ref: TypeAlias = Any

AXES = {
    "queries": ("batch", "head", "q", "head_dim"),
    "keys": ("batch", "kv_head", "k", "head_dim"),
    "numbers": ("batch", "head", "one", "q"),  # one of each query
    "q_column": ("batch", "q", "lanes"),  # segment ids along the first axis of a block of scores
    "k_column": ("batch", "k", "lanes"),
    "q_row": ("batch", "one", "q"),  # and along the second
    "k_row": ("batch", "one", "k"),
}

LANES = 128

# A visit is an int32: block of queries, block of keys, and what there is to do.
BLOCK_BITS, WORK_BITS = 13, 4
FIRST, LAST, WHOLE, PARTLY = 1, 2, 4, 8


@dataclass(frozen=True)
class Plan:
    """The order in which a kernel covers the scores: by block of queries the blocks of keys, or the other way around.

    The grid is (batch, kv head, query head of its group, visit), the last two swapped where blocks of keys are outer.
    """

    call: Call
    block_q: int
    block_k: int
    keys_outer: bool = False

    @property
    def padded(self) -> tuple[int, int]:
        """Lengths of queries and keys in whole blocks. The added queries need no mask: their output is cut off, and
        with a gradient of zeros they add nothing to that of the keys."""
        return self.call.q_len + -self.call.q_len % self.block_q, self.call.kv_len + -self.call.kv_len % self.block_k

    def visits(self, q_offset: int | Array, segment_ids: Array | None) -> tuple[Array, int | Array]:
        """The blocks to visit in order, `[batch * visits]` int32, and the number of visits that the longest row makes.

        Without segment ids, which differ by row of the batch, the blocks are `[visits]`.
        """
        sight = self.sight(q_offset, segment_ids)
        xp: Any = np if isinstance(sight, np.ndarray) else jnp
        sight = sight.swapaxes(-1, -2) if self.keys_outer else sight
        rows, num_outer, num_inner = sight.shape
        # What sees nothing, or is seen by nothing, is visited once all the same: zeros are to be written there.
        kept = (sight > 0) | (~sight.any(-1, keepdims=True) & (np.arange(num_inner) == 0))
        sight, kept = (x.reshape(rows, num_outer * num_inner) for x in (sight, kept))
        count = kept.sum(-1, keepdims=True)
        at = np.arange(int(count.max()) if xp is np else num_outer * num_inner)
        # Those kept, in order; then the last of them over and over, so that nothing more is fetched.
        pair = xp.take_along_axis(xp.argsort(~kept, axis=-1, stable=True), xp.minimum(at, count - 1), axis=-1)
        outer, inner = pair // num_inner, pair % num_inner
        new, edge = outer[:, 1:] != outer[:, :-1], np.ones((rows, 1), bool)
        first, last = xp.concatenate([edge, new], -1), xp.concatenate([new, edge], -1) | (at == count - 1)
        todo = xp.take_along_axis(sight, pair, axis=-1) | FIRST * first | LAST * last
        q, k = (inner, outer) if self.keys_outer else (outer, inner)
        visits = (q << BLOCK_BITS | k) << WORK_BITS | xp.where(at < count, todo, 0)
        return jnp.asarray(visits, jnp.int32).reshape(-1), len(at) if xp is np else count.max().astype(jnp.int32)

    def sight(self, q_offset: int | Array, segment_ids: Array | None) -> Any:
        """The part of each block that a mask leaves: WHOLE, PARTLY or 0, `[1 or batch, q blocks, k blocks]`."""
        call, (q_padded, k_padded) = self.call, self.padded
        q_first, k_first = np.arange(0, q_padded, self.block_q)[:, None], np.arange(0, k_padded, self.block_k)
        q_last = np.minimum(q_first + self.block_q, call.q_len) - 1
        k_last = np.minimum(k_first + self.block_k, call.kv_len) - 1
        least, most = q_first + q_offset - k_last, q_last + q_offset - k_first  # positions from a key to a query
        some: Any = np.ones((1, len(q_first), len(k_first)), bool)
        every = some & (k_first + self.block_k <= call.kv_len)
        if call.causal:
            some, every = some & (most >= 0), every & (least >= 0)
        if call.window is not None:
            some, every = some & (least < call.window), every & (most < call.window)
        if segment_ids is not None:
            q_low, q_high = (x[:, :, None] for x in _extremes(segment_ids, self.block_q))
            k_low, k_high = (x[:, None, :] for x in _extremes(segment_ids, self.block_k))
            some, every = some & (q_low <= k_high) & (k_low <= q_high), every & (q_low == k_high) & (q_high == k_low)
        return WHOLE * every | PARTLY * (some & ~every)

    def read(self, visits: Ref, batch: Any, at: Any) -> tuple[Any, Any, Any]:
        """The block of queries, that of keys, and what to do."""
        row = batch * (visits.shape[0] // self.call.batch) if self.call.has_segments else 0
        visit = visits[row + at]
        blocks, todo = visit >> WORK_BITS, visit & (1 << WORK_BITS) - 1
        return blocks >> BLOCK_BITS, blocks & (1 << BLOCK_BITS) - 1, todo

    def shape(self, kind: str, q_len: int, kv_len: int) -> tuple[int, ...]:
        call = self.call
        sizes = {"batch": call.batch, "head": call.num_heads, "kv_head": call.num_kv_heads, "q": q_len, "k": kv_len}
        sizes |= {"head_dim": call.head_dim, "lanes": LANES, "one": 1}
        return tuple(sizes[axis] for axis in AXES[kind])

    def spec(self, kind: str) -> pl.BlockSpec:
        """The block of an array that a step of the grid is given."""

        def index(batch: Any, kv_head: Any, i: Any, j: Any, visits: Ref, offset: Ref) -> tuple[Any, ...]:
            at, member = (i, j) if self.keys_outer else (j, i)
            q, k, _ = self.read(visits, batch, at)
            here = {"batch": batch, "head": kv_head * self.call.group + member, "kv_head": kv_head, "q": q, "k": k}
            return tuple(here.get(axis, 0) for axis in AXES[kind])

        *outer, rows, lanes = self.shape(kind, self.block_q, self.block_k)
        return pl.BlockSpec((*(None for _ in outer), rows, lanes), index)


def _extremes(segment_ids: Array, block: int) -> tuple[Array, Array]:
    """Least and greatest of each block, `[batch, blocks]`."""
    batch, length = segment_ids.shape
    blocks = jnp.pad(segment_ids, ((0, 0), (0, -length % block)), mode="edge").reshape(batch, -1, block)
    return blocks.min(-1), blocks.max(-1)
