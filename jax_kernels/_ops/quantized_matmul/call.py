"""A call of quantized_matmul as its implementations see it: everything but the values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jax_kernels.implementations import Config
from jax_kernels.op import Work


@dataclass(frozen=True)
class Call:
    """Shapes and types of a call, known before the program runs.

    Attributes:
        dtype: of x and weight.
        x_blocks: of k, which have a scale in each row of x.
        weight_blocks: of k, which have a scale in each column block of the weight.
        column_blocks: of n, which have a scale in each of those.
    """

    batch_fields: ClassVar = ("m",)

    m: int
    k: int
    n: int
    dtype: str
    x_blocks: int
    weight_blocks: int
    column_blocks: int
    out_dtype: str

    def __str__(self) -> str:
        """In the words of a table: "4096 x 7168 x 2112, scales of 1 x 128 and 128 x 128, int8"."""
        x = f"1 x {self.k // self.x_blocks}"
        weight = f"{self.k // self.weight_blocks} x {self.n // self.column_blocks}"
        return f"{self.m} x {self.k} x {self.n}, scales of {x} and {weight}, {self.dtype}"

    @property
    def num_blocks(self) -> int:
        """Blocks of k within which no scale changes: their products are summed before they are scaled."""
        return math.lcm(self.x_blocks, self.weight_blocks)

    @property
    def block_k(self) -> int:
        return self.k // self.num_blocks

    @property
    def accumulator(self) -> Any:
        """The type in which the products of a block are summed: exactly, for int8."""
        return jnp.int32 if self.dtype == "int8" else jnp.float32

    def scale_of(self, block: Any) -> tuple[Any, Any]:
        """Which of the scales along k are those of a block: of x, and of the weight."""
        return block // (self.num_blocks // self.x_blocks), block // (self.num_blocks // self.weight_blocks)


def workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    """The product, as generation runs it, and what makes arrays of the call's shapes."""

    def program(x: jax.Array, weight: jax.Array, x_scale: jax.Array, weight_scale: jax.Array) -> Any:
        return run(call, config, x, weight, x_scale, weight_scale)

    def arguments() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0), 4)
        # Integers up to 127 are in the range of both types; float8_e4m3fn rounds them to 4 bits.
        x, weight = (
            jax.random.randint(key, shape, -127, 128).astype(call.dtype)
            for key, shape in zip(keys, ((call.m, call.k), (call.k, call.n)), strict=False)
        )
        shapes = ((call.m, call.x_blocks), (call.weight_blocks, call.column_blocks))
        scales = (
            jax.random.uniform(key, shape, jnp.float32, 0.5, 1.5) / 127
            for key, shape in zip(keys[2:], shapes, strict=True)
        )
        return x, weight, *scales

    return program, arguments


def work(call: Call) -> Work:
    """One product; scales are few beside the operands, and counted."""
    scales = 4 * (call.m * call.x_blocks + call.weight_blocks * call.column_blocks)
    operands = call.m * call.k + call.k * call.n
    results = call.m * call.n * jnp.dtype(call.out_dtype).itemsize
    return Work(2 * call.m * call.k * call.n, operands + scales + results)
