"""A call of attention as its forms see it: everything but the values."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from jax_kernels.attention.mask import Mask


@dataclass(frozen=True)
class Call:
    """Shapes and options of a call, known before the program runs. `q_offset` is None when it is an array."""

    batch: int
    q_len: int
    kv_len: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    causal: bool
    window: int | None
    q_offset: int | None
    has_segments: bool
    scale: float
    logit_softcap: float | None
    return_lse: bool = False

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.num_heads // self.num_kv_heads

    def mask(self, q_offset: jax.Array | None, segment_ids: jax.Array | None) -> Mask:
        """The mask, with what is known only when the program runs."""
        offset = self.q_offset if q_offset is None else q_offset
        assert offset is not None
        return Mask(self.causal, self.window, offset, segment_ids)
