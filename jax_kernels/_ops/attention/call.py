"""A call of attention as its implementations see it: everything but the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_kernels._ops.attention.mask import Mask, SegmentIds
from jax_kernels.implementations import Config
from jax_kernels.op import TrainingProgram, Work


@dataclass(frozen=True)
class Call:
    """Shapes and options of a call, known before the program runs. `q_offset` is None when it is an array."""

    batch_fields: ClassVar = ("batch",)

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

    def __str__(self) -> str:
        """In the words of a table: "8 x 128, 6 heads of 32, causal, float32"."""
        length = str(self.q_len) if self.q_len == self.kv_len else f"{self.q_len} of {self.kv_len}"
        shared = f" over {self.num_kv_heads}" if self.group > 1 else ""
        options = {
            "causal": self.causal,
            f"window {self.window}": self.window is not None,
            "packed": self.has_segments,
            f"soft cap {self.logit_softcap}": self.logit_softcap is not None,
            "offset traced": self.q_offset is None,
            f"offset {self.q_offset}": bool(self.q_offset),
            "with log-sum-exp": self.return_lse,
        }
        heads = f"{self.num_heads} heads{shared} of {self.head_dim}"
        words = [word for word, holds in options.items() if holds]
        return ", ".join([f"{self.batch} x {length}", heads, *words, self.dtype])

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.num_heads // self.num_kv_heads

    @property
    def is_empty(self) -> bool:
        """Whether an array of it has no elements."""
        return 0 in (self.batch, self.q_len, self.kv_len, self.num_heads, self.head_dim)

    def seen_pairs(self) -> int:
        """Pairs of query and key that see each other; of segments, whose lengths are values, nothing is known. A traced
        offset is taken as that of the last queries, which see the most."""
        offset = self.kv_len - self.q_len if self.q_offset is None else self.q_offset
        at = np.arange(offset, offset + self.q_len, dtype=np.int64)
        stop = np.clip(at + 1, 0, self.kv_len) if self.causal else self.kv_len
        start = 0 if self.window is None else np.clip(at + 1 - self.window, 0, self.kv_len)
        return int(np.maximum(np.broadcast_to(stop - start, at.shape), 0).sum())

    def product_flops(self) -> int:
        """Operations of one matrix product over the pairs that see each other."""
        return 2 * self.batch * self.num_heads * self.seen_pairs() * self.head_dim

    def mask(self, q_offset: int | jax.Array | None, segment_ids: SegmentIds | None) -> Mask:
        """The mask, with what is known only when the program runs."""
        offset = self.q_offset if q_offset is None else q_offset
        assert offset is not None
        return Mask(self.causal, self.window, offset, segment_ids)


def workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    """Forward and backward of an implementation, as training runs them, and what makes arrays of the call's shapes."""

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, offset: Any, ids: Any) -> Any:
        return run(call, config, q, k, v, offset, ids)[0]

    def arguments() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0), 5)
        q_shape = (call.batch, call.q_len, call.num_heads, call.head_dim)
        k_shape = (call.batch, call.kv_len, call.num_kv_heads, call.head_dim)
        shapes = (q_shape, k_shape, k_shape, q_shape)
        q, k, v, d_out = (jax.random.normal(key, s, call.dtype) for key, s in zip(keys, shapes, strict=False))
        documents = _documents(call, keys[4])
        offset = None if call.q_offset is not None else jnp.int32(call.kv_len - call.q_len)
        return (q, k, v), (offset, documents if call.has_segments else None), d_out

    return TrainingProgram(forward), arguments


def _documents(call: Call, key: jax.Array) -> SegmentIds:
    of_keys = jnp.sort(jax.random.randint(key, (call.batch, call.kv_len), 0, 8), axis=1)
    return of_keys if call.q_len == call.kv_len else (of_keys[:, -call.q_len :], of_keys)


def work(call: Call) -> Work:
    """Two products over each pair of query and key that see each other on the way forward, five on the way back, which
    forms the scores anew. Segments are left out, since their lengths are values."""
    queries = call.batch * call.q_len * call.num_heads * call.head_dim
    keys = call.batch * call.kv_len * call.num_kv_heads * call.head_dim
    # q, k, v, d_out in; out, d_q, d_k, d_v out.
    return Work(7 * call.product_flops(), jnp.dtype(call.dtype).itemsize * (4 * queries + 4 * keys))
