"""Shapes that matter and why, for tests, tuning and benchmarks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jax_kernels._ops.rotary.call import Call


@dataclass(frozen=True)
class Case:
    """One call of `rotary`. Rows of the batch have angles of their own where documents are packed into them."""

    op: ClassVar = "rotary"

    name: str
    batch: int
    length: int
    heads: int
    head_dim: int
    is_packed: bool = False

    def call(self, dtype: str) -> Call:
        angles_batch = self.batch if self.is_packed else 1
        return Call(self.batch, self.length, self.heads, self.head_dim, dtype, angles_batch)


CASES = {
    "gpu": (
        Case("12 heads of 64", 8, 2048, 12, 64),
        Case("llama3-8b, queries", 4, 4096, 32, 128),
        Case("llama3-8b, keys, packed", 4, 4096, 8, 128, is_packed=True),
        Case("gemma2-9b, queries", 2, 4096, 16, 256),
        Case("llama3-8b, one token", 64, 1, 32, 128, is_packed=True),
    ),
    "cpu": (
        Case("6 heads of 64", 8, 256, 6, 64),
        Case("8 heads of 128", 2, 1024, 8, 128),
        Case("packed", 2, 1024, 8, 64, is_packed=True),
    ),
}
"""For benchmarks, by platform: shapes of models that people know."""

SMALL_CASES = (
    Case("even", 2, 16, 4, 64),
    Case("packed", 2, 24, 2, 64, is_packed=True),
    Case("no block divides the length", 2, 37, 3, 64),
    Case("one token", 3, 1, 4, 32, is_packed=True),
    Case("more heads than a block has", 1, 5, 11, 64),
    Case("many short heads", 1, 9, 40, 8),
    Case("head_dim of Phi", 1, 5, 9, 80),
    Case("head_dim of Phi-3", 1, 5, 5, 96),
    Case("head_dim of Llama", 2, 11, 1, 128),
    Case("head_dim of Gemma", 1, 5, 2, 256),
    Case("one pair", 1, 3, 64, 2),
    Case("one short head", 2, 9, 1, 48),
)
"""For tests: each block boundary, each head_dim, small."""

COMPILED_CASES = (
    Case("head_dim 64", 8, 2048, 12, 64),
    Case("head_dim 80", 2, 1024, 32, 80),
    Case("head_dim 96, packed", 2, 2048, 32, 96, is_packed=True),
    Case("head_dim 112", 2, 2048, 32, 112),
    Case("head_dim 128", 4, 4096, 32, 128),
    Case("head_dim 256", 2, 4096, 16, 256),
    Case("no block divides it", 3, 1000, 9, 64),
    Case("one key head of 64", 2, 1024, 1, 64),
    Case("one token", 64, 1, 8, 128, is_packed=True),
)
"""For compilers of hardware that is absent: real sizes, each head_dim."""
