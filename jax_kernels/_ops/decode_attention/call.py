"""A call of decode_attention as its implementations see it: everything but the values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_kernels.implementations import Config
from jax_kernels.op import Work


@dataclass(frozen=True)
class Call:
    """Shapes and options of a call, known before the program runs."""

    batch_fields: ClassVar = ("batch", "num_pages")

    batch: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_pages: int
    page_size: int
    pages_per_row: int
    dtype: str
    window: int | None
    scale: float
    logit_softcap: float | None
    return_lse: bool = False

    def __str__(self) -> str:
        """In the words of a table: "8 x 2048, 32 heads over 8 of 128, pages of 16, bfloat16"."""
        shared = f" over {self.num_kv_heads}" if self.group > 1 else ""
        options = {
            f"window {self.window}": self.window is not None,
            f"soft cap {self.logit_softcap}": self.logit_softcap is not None,
            "with log-sum-exp": self.return_lse,
        }
        heads = f"{self.num_heads} heads{shared} of {self.head_dim}"
        words = [word for word, holds in options.items() if holds]
        return ", ".join([f"{self.batch} x {self.capacity}", heads, f"pages of {self.page_size}", *words, self.dtype])

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.num_heads // self.num_kv_heads

    @property
    def capacity(self) -> int:
        """Tokens that the table of a row reaches."""
        return self.pages_per_row * self.page_size

    def keys_seen(self, length: Any) -> tuple[Any, Any]:
        """First and one past the last position of the keys that the query of a row of this length sees. A length
        beyond the table counts as all of it, one below 0 as 0."""
        stop = jnp.clip(length, 0, self.capacity)
        return 0 if self.window is None else jnp.maximum(stop - self.window, 0), stop


def workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    """An implementation's forward pass, as generation runs it, and what makes its arrays: full rows, mixed pages."""

    def program(q: jax.Array, k_pages: jax.Array, v_pages: jax.Array, page_table: jax.Array, lengths: jax.Array) -> Any:
        return run(call, config, q, k_pages, v_pages, page_table, lengths)[0]

    def arguments() -> tuple[Any, ...]:
        pages = (call.num_kv_heads, call.num_pages, call.page_size, call.head_dim)
        shapes = ((call.batch, call.num_heads, call.head_dim), pages, pages)
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        drawn = jax.random.normal(jax.random.key(0), (int(ends[-1]),), call.dtype)  # each shape is compiled
        parts = jnp.split(drawn, ends[:-1])
        q, k_pages, v_pages = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        order = np.arange(call.batch * call.pages_per_row) * 7919 % call.num_pages  # a prime: each page once
        table = jnp.asarray(order.reshape(call.batch, call.pages_per_row), jnp.int32)
        return q, k_pages, v_pages, table, jnp.full(call.batch, call.capacity, jnp.int32)

    return program, arguments


def work(call: Call) -> Work:
    """Two products over the keys that the query of a full row sees, and the pages that hold them, each read once."""
    first = max(call.capacity - call.window, 0) if call.window is not None else 0
    flops = 2 * 2 * call.batch * call.num_heads * (call.capacity - first) * call.head_dim
    pages = call.batch * (call.pages_per_row - first // call.page_size)
    elements = 2 * pages * call.num_kv_heads * call.page_size * call.head_dim
    elements += 2 * call.batch * call.num_heads * call.head_dim  # q in, out out
    return Work(flops, jnp.dtype(call.dtype).itemsize * elements + 4 * (pages + call.batch))
