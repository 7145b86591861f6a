"""Shapes that matter and why, for tests, tuning and benchmarks alike."""

from __future__ import annotations

from dataclasses import dataclass

from jax_kernels._ops.norms.call import Call, Kind

KINDS: tuple[tuple[Kind, bool], ...] = (("rms_norm", False), ("layer_norm", True))
"""Each with a bias or without, as most models have it."""


@dataclass(frozen=True)
class Case:
    """One call of `op`. `param_dtype` is that of scale and bias, x's where it is None."""

    op: Kind
    name: str
    rows: int
    embed: int
    residual: bool = True
    bias: bool = False
    param_dtype: str | None = None
    epsilon: float = 1e-6

    def call(self, dtype: str) -> Call:
        return Call(
            kind=self.op,
            rows=self.rows,
            embed=self.embed,
            dtype=dtype,
            param_dtype=self.param_dtype or dtype,
            epsilon=self.epsilon,
            has_bias=self.bias,
            has_residual=self.residual,
        )


CASES = {
    "gpu": (
        Case("rms_norm", "llama3-8b", 16384, 4096),
        Case("rms_norm", "llama3-8b, no residual", 16384, 4096, residual=False),
        Case("rms_norm", "qwen3-32b", 16384, 5120),
        Case("rms_norm", "qwen3-32b, heads", 16384 * 64, 128, residual=False),
        Case("rms_norm", "llama3-70b", 8192, 8192),
        Case("rms_norm", "llama3-405b", 4096, 16384),
        Case("layer_norm", "gpt2-124m", 16384, 768, bias=True),
        Case("layer_norm", "gpt2-124m, float32 parameters", 16384, 768, bias=True, param_dtype="float32"),
        Case("layer_norm", "gpt2-1.5b", 16384, 1600, bias=True),
        Case("layer_norm", "gpt-neox-20b", 8192, 6144, bias=True),
        Case("layer_norm", "gpt3-175b", 4096, 12288, bias=True),
    ),
    "cpu": (
        Case("rms_norm", "llama, small", 2048, 384),
        Case("rms_norm", "llama, small, no residual", 2048, 384, residual=False),
        Case("rms_norm", "llama3-8b", 512, 4096),
        Case("layer_norm", "gpt2-10m", 2048, 384, bias=True),
        Case("layer_norm", "gpt2-10m, no residual", 2048, 384, residual=False, bias=True),
        Case("layer_norm", "gpt2-124m", 4096, 768, bias=True),
    ),
}
"""For benchmarks, by platform: training shapes of models that people know."""

SMALL_CASES = tuple(
    case
    for op, bias in KINDS
    for case in (
        Case(op, "one block", 8, 128, bias=bias),
        Case(op, "one row", 1, 40, bias=bias),
        Case(op, "blocks, the last one short", 70, 96, bias=bias),
        Case(op, "no residual", 70, 96, residual=False, bias=bias),
        Case(op, "odd sizes", 33, 77, bias=bias),
        Case(op, "few and wide", 3, 1100, bias=bias),
        Case(op, "many and narrow", 300, 5, bias=bias),
        Case(op, "float32 parameters", 24, 64, bias=bias, param_dtype="float32"),
        *([Case(op, "no bias", 24, 64)] if bias else []),
    )
)
"""For tests: each option, each edge of a block, small."""

COMPILED_CASES = tuple(
    case
    for op, bias in KINDS
    for case in (
        Case(op, "768", 8192, 768, bias=bias),
        Case(op, "4096, no residual", 4096, 4096, residual=False, bias=bias),
        Case(op, "5120, float32 parameters", 4096, 5120, bias=bias, param_dtype="float32"),
        Case(op, "8192", 4096, 8192, bias=bias),
        Case(op, "16384", 2048, 16384, bias=bias),
        Case(op, "no block divides it", 1000, 1111, bias=bias),
        Case(op, "heads of 128", 65536, 128, residual=False),
    )
)
"""For compilers of hardware that is absent: real sizes."""
