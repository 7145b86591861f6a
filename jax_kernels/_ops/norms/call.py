"""A call of rms_norm or layer_norm as its implementations see it: everything but the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp

from jax_kernels.implementations import Config
from jax_kernels.op import TrainingProgram, Work

Kind: TypeAlias = Literal["rms_norm", "layer_norm"]


@dataclass(frozen=True)
class Call:
    """Shapes and options of a call, known before the program runs.

    Attributes:
        rows: of x `[rows, embed]`, all of its leading axes in one.
        param_dtype: of scale and bias.
    """

    batch_fields: ClassVar = ("rows",)

    kind: Kind
    rows: int
    embed: int
    dtype: str
    param_dtype: str
    epsilon: float
    has_bias: bool
    has_residual: bool

    def __str__(self) -> str:
        """In the words of a table: "8192 x 4096, residual, bfloat16"."""
        options = {
            "bias": self.has_bias,
            "residual": self.has_residual,
            f"{self.param_dtype} parameters": self.param_dtype != self.dtype,
        }
        words = [word for word, holds in options.items() if holds]
        return ", ".join([f"{self.rows} x {self.embed}", *words, self.dtype])

    @property
    def is_centred(self) -> bool:
        return self.kind == "layer_norm"


def power_below(number: int) -> int:
    """The greatest power of two up to it, as sizes of blocks are."""
    return 1 << number.bit_length() - 1


def workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    """Forward and backward of an implementation, as training runs them, and what makes arrays of the call's shapes."""

    def arguments() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0), 6)
        x, d_out, residual, d_total = (jax.random.normal(key, (call.rows, call.embed), call.dtype) for key in keys[:4])
        scale, bias = (jax.random.normal(key, (call.embed,), call.param_dtype) for key in keys[4:])
        added = (residual, d_total) if call.has_residual else (None, None)
        # The residual's gradient is x's: returned from a program, it would be copied.
        return (x, scale, bias if call.has_bias else None), (added[0],), (d_out, added[1])

    return TrainingProgram(partial(run, call, config)), arguments


def work(call: Call) -> Work:
    """x, out, then d_out, what was normalized, d_x; with a residual that, the sum and its gradient as well."""
    arrays = 8 if call.has_residual else 5
    parameters = 5 if call.has_bias else 3  # scale is read on both ways, each has a gradient
    num_bytes = arrays * call.rows * call.embed * jnp.dtype(call.dtype).itemsize
    return Work(0, num_bytes + parameters * call.embed * jnp.dtype(call.param_dtype).itemsize)
