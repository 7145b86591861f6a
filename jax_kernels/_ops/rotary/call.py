"""A call of rotary as its implementations see it: everything but the values; and the gradient, which they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp

from jax_kernels.implementations import Config
from jax_kernels.op import TrainingProgram, Work


@dataclass(frozen=True)
class Call:
    """Shapes of a call, known before the program runs. `angles_batch` is 1 where the whole batch shares its angles."""

    batch_fields: ClassVar = ("batch", "angles_batch")

    batch: int
    length: int
    heads: int
    head_dim: int
    dtype: str
    angles_batch: int

    def __str__(self) -> str:
        """In the words of a table: "8 x 1024, 12 heads of 64, bfloat16"."""
        words = ["angles of each row"] if self.angles_batch > 1 else []
        shape = f"{self.batch} x {self.length}"
        return ", ".join([shape, f"{self.heads} heads of {self.head_dim}", *words, self.dtype])

    @property
    def half(self) -> int:
        return self.head_dim // 2


Rotate: TypeAlias = Callable[[Call, Config, jax.Array, jax.Array, jax.Array], jax.Array]
"""(call, config, x, cos, sin) -> x turned."""


def differentiable(rotate: Rotate) -> Rotate:
    """An implementation with its gradient in x: the output's gradient, which the implementation itself turns back."""

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def rotary(call: Call, config: Config, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        return rotate(call, config, x, cos, sin)

    def forward(call: Call, config: Config, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, Any]:
        return rotate(call, config, x, cos, sin), (cos, sin)

    def backward(call: Call, config: Config, angles: Any, d_out: jax.Array) -> tuple[jax.Array, None, None]:
        cos, sin = angles
        return rotate(call, config, d_out, cos, -sin), None, None

    rotary.defvjp(forward, backward)
    return rotary


def workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    """Forward and backward of an implementation, as training runs them, and what makes arrays of the call's shapes.

    The heads of x lie side by side, as a projection leaves them: a TPU's layout of separate heads is another.
    """
    side_by_side = (call.batch, call.length, call.heads * call.head_dim)

    def forward(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        by_head = x.reshape(call.batch, call.length, call.heads, call.head_dim)
        result: jax.Array = run(call, config, by_head, cos, sin)
        return result.reshape(side_by_side)

    def arguments() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0), 3)
        x, d_out = (jax.random.normal(key, side_by_side, call.dtype) for key in keys[:2])
        dtype = jnp.promote_types(call.dtype, jnp.float32)
        angles = jax.random.uniform(keys[2], (call.angles_batch, call.length, call.half), dtype, 0.0, 2.0 * jnp.pi)
        return (x,), (jnp.cos(angles), jnp.sin(angles)), d_out

    return TrainingProgram(forward), arguments


def work(call: Call) -> Work:
    """No products; x and its gradient each read and written once, the angles read on either way."""
    elements = call.batch * call.length * call.heads * call.head_dim
    angles = 2 * call.angles_batch * call.length * call.half
    wide = jnp.promote_types(call.dtype, jnp.float32).itemsize
    return Work(0, 4 * elements * jnp.dtype(call.dtype).itemsize + 2 * angles * wide)
