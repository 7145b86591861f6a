"""Attention of one query a row over a cache of keys and values in pages: a step of generation.

`write_pages` puts keys and values into the cache, `decode_attention` reads them where they lie, `gather_pages` makes
rows of them again.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

import jax
import jax.numpy as jnp

from jax_kernels._ops.decode_attention import reference, xla
from jax_kernels._ops.decode_attention.call import Call, work, workload
from jax_kernels._ops.decode_attention.pages import check_counts, check_pages, check_table, gather_pages, write_pages
from jax_kernels._ops.score_options import check_score_options
from jax_kernels.dispatch import run
from jax_kernels.implementations import Implementation, kernel_implementation
from jax_kernels.op import Op

__all__ = [
    "DECODE_ATTENTION",
    "Implementation",
    "decode_attention",
    "decode_attention_with_lse",
    "gather_pages",
    "write_pages",
]

ImplementationName: TypeAlias = Literal["auto", "reference", "xla", "pallas_triton", "pallas_tpu"]

KERNELS = ("pallas_triton", "pallas_tpu")

DECODE_ATTENTION = Op(
    "decode_attention",
    __name__,
    Call,
    {
        implementation.name: implementation
        for implementation in (
            Implementation("reference", reference.decode_attention),
            Implementation("xla", xla.decode_attention, configs=xla.configs),
            *(kernel_implementation(name, "decode_attention", f"{__name__}.{name}") for name in KERNELS),
        )
    },
    {"cpu": ("xla",), "gpu": ("pallas_triton", "xla"), "tpu": ("pallas_tpu", "xla")},
    workload,
    work,
)


class Options(TypedDict, total=False):
    """Options of a call of decode attention.

    Attributes:
        window: the query sees the last `window` of the keys, its own included.
        scale: of the scores; 1 / sqrt(head_dim) if None.
        logit_softcap: scores become cap * tanh(score / cap).
        implementation: which implementation; "auto" takes the fastest for the device. If it does not
            support the call, another runs, with a warning.
    """

    window: int | None
    scale: float | None
    logit_softcap: float | None
    implementation: ImplementationName


def decode_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    **options: Unpack[Options],
) -> jax.Array:
    """Attention of q `[batch, num_heads, head_dim]` over the pages `[num_kv_heads, num_pages, page_size, head_dim]`.

    Args:
        page_table: `[batch, pages_per_row]` integers: the pages that hold a row, in their order.
        lengths: `[batch]` integers: tokens of each row in the cache, the query's own included. The query is at the
            last of them. What no query sees, in pages and in the table, may be anything.

    Returns the output, shaped as q. A row of length 0 is zeros.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    return _run(q, k_pages, v_pages, page_table, lengths, return_lse=False, **options)[0]


def decode_attention_with_lse(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    **options: Unpack[Options],
) -> tuple[jax.Array, jax.Array]:
    """`decode_attention`, and the log-sum-exp of each row's scores `[batch, num_heads]`: partial results combine by it.

    It is float32 or wider, and -inf for a row of length 0.
    """
    return _run(q, k_pages, v_pages, page_table, lengths, return_lse=True, **options)


def _run(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    return_lse: bool,
    window: int | None = None,
    scale: float | None = None,
    logit_softcap: float | None = None,
    implementation: ImplementationName = "auto",
) -> tuple[jax.Array, jax.Array]:
    _check_arrays(q, k_pages, v_pages, page_table, lengths)
    check_score_options(window, scale, logit_softcap)
    capacity = page_table.shape[1] * k_pages.shape[2]
    call = Call(
        batch=q.shape[0],
        num_heads=q.shape[1],
        num_kv_heads=k_pages.shape[0],
        head_dim=q.shape[2],
        num_pages=k_pages.shape[1],
        page_size=k_pages.shape[2],
        pages_per_row=page_table.shape[1],
        dtype=q.dtype.name,
        window=None if window is None or window >= capacity else int(window),  # a mask that hides nothing is none
        scale=1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
        logit_softcap=None if logit_softcap is None else float(logit_softcap),
        return_lse=return_lse,
    )
    table, counts = page_table.astype(jnp.int32), lengths.astype(jnp.int32)
    out, lse = run(DECODE_ATTENTION, call, implementation, q, k_pages, v_pages, table, counts)
    return out, lse


def _check_arrays(q: Any, k_pages: Any, v_pages: Any, page_table: Any, lengths: Any) -> None:
    if q.ndim != 3 or not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q: expected floating-point values [batch, num_heads, head_dim], got {q.dtype} {q.shape}")
    check_pages("k_pages", k_pages)
    if k_pages.dtype != q.dtype or k_pages.shape[3] != q.shape[2]:
        raise ValueError(
            f"k_pages: expected {q.dtype} and head_dim {q.shape[2]} as q, got {k_pages.dtype} {k_pages.shape}"
        )
    if q.shape[1] % k_pages.shape[0]:
        raise ValueError(
            f"k_pages: expected a number of heads that divides the {q.shape[1]} of q, got {k_pages.shape[0]}"
        )
    if v_pages.shape != k_pages.shape or v_pages.dtype != k_pages.dtype:
        raise ValueError(
            f"v_pages: expected {k_pages.dtype} {k_pages.shape} as k_pages, got {v_pages.dtype} {v_pages.shape}"
        )
    check_table(page_table, q.shape[:1])
    check_counts("lengths", lengths, q.shape[0])
