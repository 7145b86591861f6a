"""Shapes that matter and why, for tests, tuning and benchmarks alike."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from jax_kernels._ops.linear_cross_entropy.call import Call


@dataclass(frozen=True)
class Case:
    """One call of `linear_cross_entropy`."""

    op: ClassVar = "linear_cross_entropy"

    name: str
    tokens: int
    embed: int
    vocab: int
    reduction: Literal["none", "sum", "mean"] = "mean"
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    ignore_label: int | None = None
    logit_softcap: float | None = None

    def call(self, dtype: str) -> Call:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["name"]
        values["reduction"] = "none" if self.reduction == "none" else "sum"
        return Call(**values, dtype=dtype)


CASES = {
    "gpu": (
        Case("gpt2-124m", 8192, 768, 50257),
        Case("llama3-8b", 4096, 4096, 128256),
        Case("gemma2-9b, capped", 4096, 3584, 256000, logit_softcap=30.0),
    ),
    "cpu": (
        Case("gpt2-124m, each token", 2048, 768, 50257, "none"),
        Case("gpt2-124m", 2048, 768, 50257),
        Case("gpt2-10m", 2048, 384, 4096),
    ),
}
"""For benchmarks, by platform: training shapes of models that people know."""

SMALL_CASES = (
    Case("one token", 1, 8, 5),
    Case("one chunk", 40, 16, 33),
    Case("each token", 40, 16, 33, "none"),
    Case("chunks, the last one short", 300, 16, 65, "none"),
    Case("chunks, their mean", 600, 16, 65),
    Case("chunks, their sum", 600, 16, 65, "sum"),
    Case("z-loss", 40, 16, 33, "none", z_loss=0.1),
    Case("z-loss of the mean", 40, 16, 33, z_loss=0.1),
    Case("smoothed", 40, 16, 33, "none", label_smoothing=0.1),
    Case("ignored labels", 40, 16, 33, "none", ignore_label=-1),
    Case("ignored labels of the mean", 300, 16, 33, ignore_label=2),
    Case("capped", 40, 16, 33, "none", logit_softcap=2.0),
    Case("everything", 290, 16, 77, "none", 0.01, 0.2, 0, 3.0),
    Case("everything, its mean", 290, 16, 77, "mean", 0.01, 0.2, 0, 3.0),
    Case("blocks of tokens and of the vocabulary", 530, 20, 700, "none", 0.01, 0.2, 0, 3.0),
    Case("blocks of the embedding", 24, 2300, 40, z_loss=0.01),
)
"""For tests: each option, each chunk and block boundary, small, vocabularies that no block divides."""

COMPILED_CASES = (
    Case("gpt2-124m", 8192, 768, 50257),
    Case("llama3-8b", 4096, 4096, 128256),
    Case("gemma2-9b, capped", 4096, 3584, 256000, logit_softcap=30.0),
    Case("qwen2.5-0.5b, each token, ignored labels", 2048, 896, 151936, "none", ignore_label=-100),
    Case("everything", 1024, 768, 32000, "none", 1e-4, 0.1, -100, 30.0),
    Case("no block divides it", 1000, 392, 10007, z_loss=1e-4),
    Case("rows of an odd length", 515, 77, 257, label_smoothing=0.1),
)
"""For compilers of hardware that is absent: real sizes."""
