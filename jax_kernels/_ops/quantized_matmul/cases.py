"""Shapes that matter and why, for tests, tuning and benchmarks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jax_kernels._ops.quantized_matmul.call import Call

DTYPES = ("int8", "float8_e4m3fn")


@dataclass(frozen=True)
class Case:
    """One call of `quantized_matmul`.

    Attributes:
        x_block: columns of x that share a scale, each row its own; None for all of k.
        weight_block: (rows, columns) of the weight that do; None for all of them. A scale a column is (None, 1).
    """

    op: ClassVar = "quantized_matmul"

    name: str
    m: int
    k: int
    n: int
    x_block: int | None = None
    weight_block: tuple[int | None, int | None] = (None, 1)
    out_dtype: str = "bfloat16"

    def call(self, dtype: str) -> Call:
        rows, columns = self.weight_block
        return Call(
            self.m,
            self.k,
            self.n,
            dtype,
            x_blocks=self.k // (self.x_block or self.k),
            weight_blocks=self.k // (rows or self.k),
            column_blocks=self.n // (columns or self.n),
            out_dtype=self.out_dtype,
        )


DEEPSEEK = (128, (128, 128))
"""Blocks of DeepSeek-V3 (arXiv 2412.19437, 3.3.2)."""

CASES = {
    "gpu": (
        Case("llama3-8b, up", 4096, 4096, 14336),
        Case("llama3-8b, down", 4096, 14336, 4096),
        Case("llama3-8b, up, one token each of 16", 16, 4096, 14336),
        Case("llama3-8b, down, one token each of 16", 16, 14336, 4096),
        Case("deepseek-v3, blocks", 4096, 7168, 2048, *DEEPSEEK),
        Case("deepseek-v3, blocks, one token each of 64", 64, 7168, 2048, *DEEPSEEK),
    ),
    "cpu": (
        Case("gpt2-124m, up", 512, 768, 3072),
        Case("gpt2-124m, up, one token", 1, 768, 3072),
        Case("gpt2-124m, up, blocks", 512, 768, 3072, *DEEPSEEK),
        Case("llama3.2-1b, down, one token", 1, 8192, 2048),
    ),
}
"""For benchmarks, by platform: projections of models that people know."""

SMALL_CASES = (
    Case("a scale a row and a column", 6, 40, 24),
    Case("one row", 1, 64, 16),
    Case("few rows, in pieces of k, the last one short", 3, 600, 24),
    Case("one scale of the weight", 6, 40, 24, None, (None, None)),
    Case("blocks of both", 34, 256, 260, 128, (128, 130)),
    Case("blocks of x alone", 8, 384, 24, 128),
    Case("blocks of the weight alone", 8, 384, 24, None, (128, 8)),
    Case("blocks of x within those of the weight", 8, 512, 24, 128, (256, 24)),
    Case("blocks that cross", 8, 768, 16, 384, (256, 16)),
    Case("blocks shorter than a product", 6, 260, 16, 20, (52, 1)),
    Case("long blocks", 8, 2048, 16, 1024, (1024, 16)),
    Case("float32 out", 8, 256, 24, 128, (128, 1), "float32"),
)
"""For tests: each way to lay scales, small, lengths that no block divides."""

COMPILED_CASES = (
    Case("llama3-8b, up", 4096, 4096, 14336),
    Case("llama2-7b, down", 2048, 11008, 4096),
    Case("one token each of 16", 16, 4096, 14336),
    Case("one token", 1, 8192, 2048),
    Case("deepseek-v3, blocks", 4096, 7168, 2048, *DEEPSEEK),
    Case("blocks of the weight alone", 64, 4096, 4096, None, (256, 1)),
    Case("no block divides it", 1000, 1000, 1000),
)
"""For compilers of hardware that is absent: real sizes."""
