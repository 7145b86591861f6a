"""Attention: softmax of scaled, masked scores over keys, applied to values.

One dispatcher, several implementations of the same function: `reference` states it, `xla` runs fast everywhere, the
others are for the devices in their names.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

import jax
import jax.numpy as jnp

from jax_kernels._ops.attention import cudnn, reference, xla
from jax_kernels._ops.attention.call import Call, work, workload
from jax_kernels._ops.attention.mask import SegmentIds
from jax_kernels._ops.score_options import check_score_options
from jax_kernels.dispatch import run
from jax_kernels.implementations import Device, Implementation, kernel_implementation
from jax_kernels.op import Op

__all__ = ["ATTENTION", "Implementation", "attention", "attention_with_lse"]

ImplementationName: TypeAlias = Literal[
    "auto", "reference", "xla", "pallas_triton", "pallas_mosaic_gpu", "pallas_tpu", "cudnn", "cudnn_masked"
]

KERNELS = ("pallas_triton", "pallas_mosaic_gpu", "pallas_tpu")
DTYPES = ("float16", "bfloat16", "float32", "float64")
FARTHEST = 2**29
"""Positions are int32, and so are sums of two of them and a window."""


def _kernel(name: str) -> Implementation:
    kernel = kernel_implementation(name, "attention", f"{__name__}.{name}")

    def unsupported_reason(call: Call, device: Device) -> str | None:
        if call.has_segments and call.q_len != call.kv_len:
            return "segment ids of queries and others of keys"
        return kernel.unsupported_reason(call, device)

    return replace(kernel, unsupported_reason=unsupported_reason)


ATTENTION = Op(
    "attention",
    __name__,
    Call,
    {
        implementation.name: implementation
        for implementation in (
            Implementation("reference", reference.attention),
            Implementation("xla", xla.attention, configs=xla.configs),
            *(_kernel(name) for name in KERNELS),
            Implementation("cudnn", cudnn.attention, cudnn.unsupported_reason),
            Implementation("cudnn_masked", cudnn.attention, cudnn.unsupported_reason_masked, is_kernel=True),
        )
    },
    {
        "cpu": ("xla",),
        "gpu": ("cudnn", "pallas_mosaic_gpu", "pallas_triton", "cudnn_masked", "xla"),
        "tpu": ("pallas_tpu", "xla"),
    },
    workload,
    work,
)


class Options(TypedDict, total=False):
    """Options of a call of attention.

    Attributes:
        causal: query i, which is at position i + q_offset, sees keys at positions up to its own.
        window: it sees the last `window` of them, itself included.
        segment_ids: `[batch, len]` int32, q_len = kv_len = len; queries see keys of their own segment. If the lengths
            differ, a pair: `[batch, q_len]` of the queries and `[batch, kv_len]` of the keys.
        scale: of the scores; 1 / sqrt(head_dim) if None.
        logit_softcap: scores become cap * tanh(score / cap).
        q_offset: position of the first query, within 2**29 of 0; an int lets the hidden blocks be skipped, an int32
            scalar may be traced.
        implementation: which implementation; "auto" takes the fastest for the device. If it does not
            support the call, another runs, with a warning.
    """

    causal: bool
    window: int | None
    segment_ids: SegmentIds | None
    scale: float | None
    logit_softcap: float | None
    q_offset: int | jax.Array
    implementation: ImplementationName


def attention(q: jax.Array, k: jax.Array, v: jax.Array, **options: Unpack[Options]) -> jax.Array:
    """Attention of q `[batch, q_len, num_heads, head_dim]` over k and v `[batch, kv_len, num_kv_heads, head_dim]`.

    Returns the output, shaped as q. A row that sees nothing is zeros.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    return _run(q, k, v, return_lse=False, **options)[0]


def attention_with_lse(
    q: jax.Array, k: jax.Array, v: jax.Array, **options: Unpack[Options]
) -> tuple[jax.Array, jax.Array]:
    """`attention`, and the log-sum-exp of each row's scores `[batch, num_heads, q_len]`: partial results combine by it.

    It is float32 or wider, and -inf for a row that sees nothing.
    """
    return _run(q, k, v, return_lse=True, **options)


def _run(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    return_lse: bool,
    causal: bool = False,
    window: int | None = None,
    segment_ids: SegmentIds | None = None,
    scale: float | None = None,
    logit_softcap: float | None = None,
    q_offset: int | jax.Array = 0,
    implementation: ImplementationName = "auto",
) -> tuple[jax.Array, jax.Array]:
    offset = _checked_offset(q_offset)
    _check_arrays(q, k, v, segment_ids)
    check_score_options(window, scale, logit_softcap)
    if isinstance(offset, int):  # a mask that hides nothing is none
        causal = causal and offset < k.shape[1] - 1
        window = None if window is None or window >= q.shape[1] + offset else window
    if not causal and window is None:  # nothing asks where queries stand
        offset = 0
    call = Call(
        batch=q.shape[0],
        q_len=q.shape[1],
        kv_len=k.shape[1],
        num_heads=q.shape[2],
        num_kv_heads=k.shape[2],
        head_dim=q.shape[3],
        dtype=q.dtype.name,
        causal=causal,
        window=None if window is None else min(int(window), FARTHEST),
        q_offset=offset if isinstance(offset, int) else None,
        has_segments=segment_ids is not None,
        scale=1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
        logit_softcap=None if logit_softcap is None else float(logit_softcap),
        return_lse=return_lse,
    )
    traced = None if isinstance(offset, int) else offset
    out, lse = run(ATTENTION, call, implementation, q, k, v, traced, segment_ids)
    return out, lse


def _checked_offset(q_offset: Any) -> int | jax.Array:
    if isinstance(q_offset, jax.Array):
        if q_offset.shape != () or not jnp.issubdtype(q_offset.dtype, jnp.integer):
            raise ValueError(f"q_offset: expected an integer scalar, got {q_offset.dtype} {q_offset.shape}")
        return q_offset
    try:
        offset = operator.index(q_offset)
    except TypeError:
        raise ValueError(f"q_offset: expected an integer, got {q_offset!r}") from None
    if abs(offset) > FARTHEST:
        raise ValueError(f"q_offset: expected an integer within 2**29 of 0, got {offset}")
    return offset


def _check_arrays(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: SegmentIds | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or x.shape[3] == 0:
            raise ValueError(f"{name}: expected [batch, len, heads, head_dim], got shape {x.shape}")
        if x.dtype.name not in DTYPES:
            raise ValueError(f"{name}: expected one of {', '.join(DTYPES)}, got {x.dtype}")
        if x.dtype != q.dtype:
            raise ValueError(f"{name}: expected {q.dtype} as q, got {x.dtype}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"k: expected batch {q.shape[0]} and head_dim {q.shape[3]} as q {q.shape}, got shape {k.shape}"
        )
    if v.shape != k.shape:
        raise ValueError(f"v: expected shape {k.shape} as k, got {v.shape}")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"k: expected a number of heads that divides the {q.shape[2]} of q, got {k.shape[2]}")
    if segment_ids is None:
        return
    pair = segment_ids if isinstance(segment_ids, tuple) else (segment_ids,)
    if len(pair) != 1 + (q.shape[1] != k.shape[1]):
        wanted = "one array" if q.shape[1] == k.shape[1] else "a pair of arrays"
        raise ValueError(f"segment_ids: expected {wanted} for {q.shape[1]} queries and {k.shape[1]} keys")
    for ids, shape in zip(pair, (q.shape[:2], k.shape[:2]), strict=False):
        if ids.shape != shape or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"segment_ids: expected integers of shape {shape}, got {ids.dtype} {ids.shape}")
