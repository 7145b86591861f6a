"""Shapes that matter and why, for tests, tuning and benchmarks alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jax_kernels._ops.decode_attention.call import Call


@dataclass(frozen=True)
class Case:
    """One call of `decode_attention`, with as many pages as the rows fill."""

    op: ClassVar = "decode_attention"

    name: str
    batch: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    pages_per_row: int
    window: int | None = None
    logit_softcap: float | None = None

    def call(self, dtype: str) -> Call:
        return Call(
            batch=self.batch,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            num_pages=self.batch * self.pages_per_row,
            page_size=self.page_size,
            pages_per_row=self.pages_per_row,
            dtype=dtype,
            window=self.window,
            scale=1.0 / math.sqrt(self.head_dim),
            logit_softcap=self.logit_softcap,
        )


CASES = {
    "gpu": (
        Case("llama3-8b, one row", 1, 32, 8, 128, 64, 128),
        Case("llama3-8b", 8, 32, 8, 128, 64, 32),
        Case("llama3-8b, small pages", 8, 32, 8, 128, 16, 128),
        Case("llama3-8b, long rows", 16, 32, 8, 128, 64, 128),
        Case("llama3-8b, many rows", 64, 32, 8, 128, 16, 128),
        Case("gpt2-124m", 32, 12, 12, 64, 16, 64),
        Case("mistral-7b, window", 8, 32, 8, 128, 64, 128, window=4096),
    ),
    "cpu": (
        Case("gpt2-10m", 4, 6, 6, 64, 16, 16),
        Case("gpt2-124m, one row", 1, 12, 12, 64, 64, 16),
        Case("gpt2-124m", 8, 12, 12, 64, 64, 16),
        Case("grouped heads, long row", 1, 32, 8, 128, 64, 64),
    ),
}
"""For benchmarks, by platform: a step of generation of models that people know, rows full."""

SMALL_CASES = (
    Case("one page", 2, 2, 2, 16, 16, 1),
    Case("grouped heads", 2, 8, 2, 16, 16, 4),
    Case("more heads than a block", 1, 70, 1, 16, 16, 2),
    Case("window shorter than a page", 2, 4, 2, 16, 32, 3, window=9),
    Case("window over pages", 2, 4, 2, 16, 16, 9, window=50),
    Case("long rows", 2, 4, 2, 16, 16, 40),
    Case("pages of 128, window, capped", 2, 2, 2, 16, 128, 2, window=100, logit_softcap=3.0),
    Case("head_dim of GPT-2, pages of 64", 2, 3, 3, 64, 64, 2),
    Case("head_dim of Stable Diffusion, capped", 2, 2, 1, 80, 16, 3, logit_softcap=2.0),
    Case("head_dim of Phi, one key head", 2, 5, 1, 96, 32, 2),
    Case("head_dim of Llama", 2, 4, 2, 128, 16, 5),
    Case("head_dim of Gemma", 2, 2, 1, 256, 16, 3),
)
"""For tests: each option, each head_dim, each page size, small."""

COMPILED_CASES = (
    Case("head_dim 64, pages of 16", 8, 12, 12, 64, 16, 64),
    Case("head_dim 80, pages of 64", 4, 32, 32, 80, 64, 16),
    Case("head_dim 96, one key head, pages of 32", 4, 71, 1, 96, 32, 50),
    Case("head_dim 128, grouped heads, pages of 16", 8, 32, 8, 128, 16, 128),
    Case("head_dim 128, window, pages of 64", 3, 32, 8, 128, 64, 100, window=4096),
    Case("head_dim 256, window, capped, pages of 128", 2, 8, 4, 256, 128, 33, window=1024, logit_softcap=50.0),
)
"""For compilers of hardware that is absent: real sizes, each head_dim, each page size."""
