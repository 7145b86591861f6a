"""Who sees whom: the mask that all implementations of attention share, in whole or by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp

SegmentIds: TypeAlias = jax.Array | tuple[jax.Array, jax.Array]
"""`[batch, len]` of queries and keys alike, or `[batch, q_len]` of the queries and `[batch, kv_len]` of the keys."""


@dataclass(frozen=True)
class Mask:
    """Query i stands at position i + q_offset and sees key j when every condition that is set allows it.

    Attributes:
        causal: j <= i + q_offset.
        window: j > i + q_offset - window.
        q_offset: an int, or an int32 scalar that is known when the program runs.
        segment_ids: `[batch, len]`, or those of queries and those of keys; both are of one segment.
    """

    causal: bool = False
    window: int | None = None
    q_offset: int | jax.Array = 0
    segment_ids: SegmentIds | None = None

    def keys_seen(self, q_start: int, q_stop: int, kv_len: int) -> tuple[int, int]:
        """A range of keys outside of which no query in the block sees any; whole when q_offset is not known yet."""
        if not isinstance(self.q_offset, int):
            return 0, kv_len
        start = 0 if self.window is None else q_start + self.q_offset - self.window + 1
        stop = q_stop + self.q_offset if self.causal else kv_len
        start = min(max(start, 0), kv_len)
        return start, min(max(stop, start), kv_len)

    def block(self, q_start: int, q_stop: int, k_start: int, k_stop: int) -> jax.Array | None:
        """Booleans that broadcast to `[batch, heads, queries, keys]`; None when all see all."""
        seen: jax.Array | None = None
        if self.causal or self.window is not None:
            distance = (jnp.arange(q_start, q_stop) + self.q_offset)[:, None] - jnp.arange(k_start, k_stop)[None, :]
            if self.causal:
                seen = distance >= 0
            if self.window is not None:
                near = distance < self.window
                seen = near if seen is None else seen & near
        if self.segment_ids is not None:
            ids = self.segment_ids
            of_queries, of_keys = ids if isinstance(ids, tuple) else (ids, ids)
            same = (of_queries[:, q_start:q_stop, None] == of_keys[:, None, k_start:k_stop])[:, None]
            seen = same if seen is None else seen & same
        return seen
