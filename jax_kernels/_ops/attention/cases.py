"""Shapes that matter and why, for tests, tuning and benchmarks alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from jax_kernels._ops.attention.call import Call


@dataclass(frozen=True)
class Case:
    """One call of `attention`. `segments` is the number of packed documents, 0 for none."""

    op: ClassVar = "attention"

    name: str
    batch: int
    q_len: int
    kv_len: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None
    segments: int = 0
    logit_softcap: float | None = None
    q_offset: int = 0

    def call(self, dtype: str) -> Call:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["name"]
        segments = values.pop("segments")
        return Call(**values, dtype=dtype, has_segments=segments > 0, scale=1.0 / math.sqrt(self.head_dim))


CASES = {
    "gpu": (
        Case("gpt2-124m", 8, 1024, 1024, 12, 12, 64),
        Case("12 heads of 64", 8, 2048, 2048, 12, 12, 64),
        Case("llama3-8b", 4, 4096, 4096, 32, 8, 128),
        Case("llama3-8b, packed", 4, 4096, 4096, 32, 8, 128, segments=8),
        Case("mistral-7b, window", 4, 8192, 8192, 32, 8, 128, window=4096),
        Case("gemma2-9b, window and cap", 2, 4096, 4096, 16, 8, 256, window=2048, logit_softcap=50.0),
    ),
    "cpu": (
        Case("gpt2-10m", 8, 256, 256, 6, 6, 64),
        Case("8 heads of 64", 2, 1024, 1024, 8, 8, 64),
        Case("grouped heads", 1, 1024, 1024, 8, 2, 64),
        Case("window", 1, 2048, 2048, 8, 8, 64, window=256),
        Case("packed", 2, 1024, 1024, 8, 8, 64, segments=8),
    ),
}
"""For benchmarks, by platform: training shapes of models that people know."""

SMALL_CASES = (
    Case("one block", 2, 16, 16, 2, 2, 8),
    Case("blocks, the last one short", 2, 150, 150, 2, 2, 16),
    Case("everything seen", 1, 130, 130, 2, 2, 16, causal=False),
    Case("grouped heads", 2, 96, 96, 6, 2, 16),
    Case("one key head", 1, 96, 96, 4, 1, 16),
    Case("window shorter than a block", 1, 200, 200, 2, 2, 16, window=9),
    Case("window longer than a block", 1, 200, 200, 2, 1, 16, window=100),
    Case("window without a causal mask", 1, 140, 140, 2, 2, 16, causal=False, window=70),
    Case("packed documents", 2, 130, 130, 4, 2, 16, segments=5),
    Case("packed, windowed, capped", 2, 130, 130, 4, 2, 16, segments=3, window=40, logit_softcap=3.0),
    Case("soft cap", 1, 70, 70, 2, 2, 16, logit_softcap=2.0),
    Case("a later piece of a long row", 1, 70, 200, 2, 2, 16, q_offset=130),
    Case("rows before the first key see nothing", 1, 70, 90, 2, 2, 16, q_offset=-20),
    Case("rows past the window see nothing", 1, 70, 30, 2, 2, 16, window=8, q_offset=10),
    Case("one query against a cache", 2, 1, 128, 4, 2, 16, q_offset=100),
    Case("head_dim of Stable Diffusion", 1, 65, 65, 1, 1, 80),
    Case("head_dim of Phi", 1, 65, 65, 1, 1, 96),
    Case("head_dim of Llama", 1, 65, 65, 2, 1, 128),
    Case("head_dim of Gemma", 1, 65, 65, 1, 1, 256),
)
"""For tests: each mask, each block boundary, each head_dim, small."""

COMPILED_CASES = (
    Case("head_dim 64", 2, 1024, 1024, 12, 12, 64),
    Case("head_dim 80, no mask", 1, 1024, 1024, 8, 8, 80, causal=False),
    Case("head_dim 96, packed", 1, 2048, 2048, 8, 4, 96, segments=4),
    Case("head_dim 128, grouped heads", 1, 2048, 2048, 32, 8, 128),
    Case("head_dim 256, window, capped", 1, 2048, 2048, 8, 4, 256, window=1024, logit_softcap=50.0),
    Case("no block divides it", 1, 1000, 1000, 4, 2, 64),
    Case("a later piece", 1, 256, 1280, 8, 2, 128, q_offset=1024),
)
"""For compilers of hardware that is absent: real sizes, each head_dim, each mask."""
