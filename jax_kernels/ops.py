"""Every op of the package, by name, and the cases of each."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from typing import Any, Protocol

from jax_kernels._ops.attention import ATTENTION
from jax_kernels._ops.decode_attention import DECODE_ATTENTION
from jax_kernels._ops.linear_cross_entropy import LINEAR_CROSS_ENTROPY
from jax_kernels._ops.norms import LAYER_NORM, RMS_NORM
from jax_kernels._ops.quantized_matmul import QUANTIZED_MATMUL
from jax_kernels._ops.rotary import ROTARY
from jax_kernels._ops.swiglu import SWIGLU
from jax_kernels.implementations import Platform
from jax_kernels.op import Op

OPS = {
    op.name: op
    for op in (
        ATTENTION,
        DECODE_ATTENTION,
        LINEAR_CROSS_ENTROPY,
        RMS_NORM,
        LAYER_NORM,
        SWIGLU,
        ROTARY,
        QUANTIZED_MATMUL,
    )
}


class Case(Protocol):
    """A call that matters, by name; `op` is the name of its op."""

    @property
    def op(self) -> str: ...
    @property
    def name(self) -> str: ...
    def call(self, dtype: str) -> Any: ...


def benchmark_cases(op: Op, platform: Platform) -> list[Case]:
    """The cases that people train and generate with on such devices; a TPU's are a GPU's."""
    return _of(op, _cases(op).CASES["cpu" if platform == "cpu" else "gpu"])


def small_cases(op: Op) -> list[Case]:
    """For tests: every option and every edge of a block, small."""
    return _of(op, _cases(op).SMALL_CASES)


def compiled_cases(op: Op) -> list[Case]:
    """For compilers of hardware that is absent: real sizes."""
    return _of(op, _cases(op).COMPILED_CASES)


def dtypes(op: Op) -> tuple[str, ...]:
    """The types of operands that an op's kernels are for; the one that matters most first."""
    found: tuple[str, ...] = getattr(_cases(op), "DTYPES", ("bfloat16", "float32"))
    return found


def read_key(key: str) -> tuple[Op, Any]:
    """The op and the call that `op.call_key` wrote. Raises KeyError, TypeError, ValueError for what is none."""
    fields = json.loads(key)
    op = OPS[fields.pop("op")]
    return op, op.call(**fields)


def _cases(op: Op) -> Any:
    return importlib.import_module(f"{op.package}.cases")


def _of(op: Op, cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.op == op.name]
