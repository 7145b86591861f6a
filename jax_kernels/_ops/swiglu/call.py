"""A call of swiglu as its implementations see it: everything but the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jax_kernels.implementations import Config
from jax_kernels.op import TrainingProgram, Work


@dataclass(frozen=True)
class Call:
    """Shapes of a call, known before the program runs."""

    batch_fields: ClassVar = ("tokens",)

    tokens: int
    embed: int
    mlp: int
    dtype: str

    def __str__(self) -> str:
        """In the words of a table: "8192 tokens x 4096 x 14336, bfloat16"."""
        return f"{self.tokens} tokens x {self.embed} x {self.mlp}, {self.dtype}"


def workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    """Forward and backward of an implementation, as training runs them, and what makes arrays of the call's shapes."""

    def arguments() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0), 4)
        shapes = ((call.tokens, call.embed), (call.embed, call.mlp), (call.embed, call.mlp), (call.tokens, call.mlp))
        x, gate, up, d_out = (
            jax.random.normal(key, shape, call.dtype) for key, shape in zip(keys, shapes, strict=True)
        )
        return (x, gate / call.embed**0.5, up / call.embed**0.5), (), d_out

    return TrainingProgram(partial(run, call, config)), arguments


def work(call: Call) -> Work:
    """Two products on the way forward; on the way back one for each weight and two for x."""
    product = 2 * call.tokens * call.embed * call.mlp
    # x, gate, up and d_out in; out and the gradients of x, gate and up out.
    elements = 2 * call.tokens * call.embed + 4 * call.embed * call.mlp + 2 * call.tokens * call.mlp
    return Work(6 * product, elements * jnp.dtype(call.dtype).itemsize)
