"""Shapes that matter and why, for tests, tuning and benchmarks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jax_kernels._ops.swiglu.call import Call


@dataclass(frozen=True)
class Case:
    """One call of `swiglu`."""

    op: ClassVar = "swiglu"

    name: str
    tokens: int
    embed: int
    mlp: int

    def call(self, dtype: str) -> Call:
        return Call(self.tokens, self.embed, self.mlp, dtype)


CASES = {
    "gpu": (
        Case("llama-1.3b", 16384, 2048, 5504),
        Case("llama3-8b", 8192, 4096, 14336),
        Case("llama2-7b", 8192, 4096, 11008),
    ),
    "cpu": (
        Case("llama of 10m", 2048, 384, 1024),
        Case("llama of 110m", 2048, 768, 2048),
    ),
}
"""For benchmarks, by platform: training shapes of models that people know."""

SMALL_CASES = (
    Case("one block", 32, 16, 64),
    Case("one token", 1, 24, 40),
    Case("blocks of tokens, the last one short", 150, 16, 32),
    Case("blocks of the width, the last one short", 16, 16, 300),
    Case("a long sum, its end short", 16, 530, 24),
    Case("nothing divides", 70, 37, 131),
    Case("one of each", 1, 1, 1),
)
"""For tests: each block boundary, small."""

COMPILED_CASES = (
    Case("llama-1.3b", 16384, 2048, 5504),
    Case("llama3-8b", 8192, 4096, 14336),
    Case("llama2-7b", 4096, 4096, 11008),
    Case("few tokens", 16, 4096, 14336),
    Case("qwen2-0.5b, a short last block of tokens", 1000, 896, 4864),
    Case("no block divides it", 1000, 1000, 2731),
    Case("odd", 333, 515, 1111),
)
"""For compilers of hardware that is absent: real sizes, and such as no block divides."""
