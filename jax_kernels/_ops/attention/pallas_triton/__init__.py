"""Attention on NVIDIA GPUs as Pallas kernels that Triton compiles: FlashAttention-2 (Dao 2023, arXiv 2307.08691).

Forward, a program holds a block of queries and walks over the blocks of keys that any of them sees. It keeps, for each
query, the highest score so far, the sum of the weights relative to it and the weighted sum of the values, and corrects
both sums when a higher score comes: the softmax needs one pass, and scores live in registers alone. The backward forms
them again from the log-sum-exp that the forward left, in two kernels: one holds keys and walks over queries (dk, dv),
the other holds queries and walks over keys (dq), so that no two programs add to the same place.

What makes it fast:
- Blocks that the mask hides are not visited, and those that a causal mask leaves whole are not masked
  (`block_iteration`).
- Softmax runs on powers of 2, which the GPU computes itself, with log2(e) in the factor of the scores.
- Arrays are read where they lie and never padded: Triton's blocks, powers of two, mask what is beyond in their loads.
  Pallas addresses an array of more than 4 GiB in 64 bits.

JAX 0.12 calls its Triton backend deprecated, in a DeprecationWarning that Python does not show unless it is told to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_kernels import implementations
from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.cost import FORWARD, OF_KEYS, OF_QUERIES, cost
from jax_kernels._ops.attention.pallas_triton.kernels import LOG2_E, dkv_kernel, dq_kernel, forward_kernel
from jax_kernels._ops.attention.pallas_triton.memory import SMALLEST_BLOCK, width_of
from jax_kernels.implementations import Config, Device

KERNELS = ("", "dkv_", "dq_")  # forward, and the two of the backward
NAMES = ("block_q", "block_k", "num_warps", "num_stages")


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "needs an NVIDIA GPU"
    if device.compute_capability < (8, 0):
        return "needs compute capability 8.0"
    if call.dtype not in ("float16", "bfloat16", "float32"):
        return call.dtype
    if call.head_dim > 256:
        return f"head_dim {call.head_dim} is more than 256"
    if call.is_empty:
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Block sizes to try, the best guess first, with blocks no longer than the lengths that they divide."""
    assert device.compute_capability is not None
    hopper = (9, 0) <= device.compute_capability < (12, 0)
    kind = "float32" if call.dtype == "float32" else "hopper" if hopper else "ampere"
    rows = [row for of, width, *row in _BLOCKS if (of, width) == (kind, max(64, width_of(call)))]
    if not hopper and device.compute_capability != (8, 0):
        rows = rows[-1:]  # for what has 99 KiB of shared memory rather than 163 or 227
    longest = [max(SMALLEST_BLOCK, pl.next_power_of_2(length)) for length in (call.q_len, call.kv_len)]
    names = [kernel + name for kernel in KERNELS for name in NAMES]
    capped = [[x for q, k, *rest in row for x in (min(q, longest[0]), min(k, longest[1]), *rest)] for row in rows]
    return list(dict.fromkeys(tuple(zip(names, values, strict=True)) for values in capped))


# NAMES of each of KERNELS: what fits shared memory as compiled, ordered by reasoning, not timed. Few spill registers at
# whole blocks; dk and dv do with a soft-cap or odd lengths. float32, without tensor cores, needs more: small blocks.
_BLOCKS: tuple[tuple[Any, ...], ...] = (
    ("hopper", 64, (128, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2)),
    ("hopper", 64, (128, 128, 8, 2), (64, 64, 4, 2), (128, 128, 8, 2)),
    ("hopper", 64, (64, 64, 4, 3), (64, 64, 8, 2), (64, 64, 4, 3)),
    ("hopper", 128, (128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 3)),
    ("hopper", 128, (128, 64, 8, 3), (32, 128, 8, 3), (64, 64, 4, 2)),
    ("hopper", 128, (64, 64, 4, 2), (64, 64, 8, 2), (128, 64, 8, 2)),
    ("hopper", 256, (128, 64, 8, 2), (32, 64, 8, 2), (64, 64, 8, 2)),
    ("hopper", 256, (64, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
    ("ampere", 64, (128, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2)),
    ("ampere", 64, (128, 128, 8, 2), (64, 64, 8, 2), (128, 32, 4, 3)),
    ("ampere", 64, (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    ("ampere", 128, (128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
    ("ampere", 128, (64, 64, 4, 2), (32, 128, 8, 3), (128, 64, 8, 3)),
    ("ampere", 128, (64, 32, 4, 2), (32, 64, 4, 2), (64, 32, 4, 2)),
    ("ampere", 256, (64, 64, 8, 2), (64, 64, 8, 1), (64, 64, 8, 2)),
    ("ampere", 256, (128, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
    ("ampere", 256, (32, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 2)),
    ("float32", 64, (64, 32, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
    ("float32", 64, (32, 32, 8, 2), (32, 32, 8, 2), (32, 32, 8, 2)),
    ("float32", 128, (32, 16, 8, 2), (16, 32, 8, 2), (32, 16, 8, 2)),
    ("float32", 256, (32, 32, 8, 2), (16, 32, 8, 2), (32, 32, 8, 2)),
    ("float32", 256, (32, 16, 8, 1), (16, 32, 8, 1), (32, 16, 8, 1)),
)


def attention(
    call: Call,
    config: Config,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_offset: jax.Array | None,
    segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Out as q `[batch, q_len, num_heads, head_dim]`, log-sum-exp `[batch, num_heads, q_len]` float32."""
    offset = None if q_offset is None else q_offset.astype(jnp.int32).reshape(1)
    ids = None if segment_ids is None else segment_ids.astype(jnp.int32)
    out, lse = _attention(call, config, implementations.is_interpreting(), offset, ids, q, k, v)
    return out, lse


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(call: Call, config: Config, interpret: bool, *operands: Any) -> Any:
    """`operands` are offset `[1]` or None, segment_ids or None, q, k, v."""
    return _run(forward_kernel, FORWARD, "", ("query", "sum"), call, config, interpret, operands)


def _forward(call: Call, config: Config, interpret: bool, *operands: Any) -> Any:
    result = _attention(call, config, interpret, *operands)
    return result, (operands, *result)


def _backward(call: Call, config: Config, interpret: bool, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    operands, out, lse = residuals
    d_out, d_lse = cotangents
    # Each score's gradient is p (dp - delta), and the log-sum-exp's own gradient adds p d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1).transpose(0, 2, 1) - d_lse
    # Of a row that sees nothing each p is 2 ** (score - inf) = 0.
    log2_sum = jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2_E)
    operands = (*operands, d_out, log2_sum, delta)
    d_k, d_v = _run(dkv_kernel, OF_KEYS, "dkv_", ("key", "key"), call, config, interpret, operands)
    (d_q,) = _run(dq_kernel, OF_QUERIES, "dq_", ("query",), call, config, interpret, operands)
    return None, None, d_q, d_k, d_v


_attention.defvjp(_forward, _backward)


def _run(
    kernel: Any, products: int, name: str, outputs: Any, call: Call, config: Config, interpret: bool, operands: Any
) -> Any:
    """One of KERNELS, a program for each (block, head, batch): of keys for "dkv_", of queries otherwise."""
    block_q, block_k, num_warps, num_stages = (dict(config)[name + of] for of in NAMES)
    by_key = name == "dkv_"
    blocks = pl.cdiv(call.kv_len, block_k) if by_key else pl.cdiv(call.q_len, block_q)
    specs = _specs(call, block_q, block_k, by_key)
    inputs = ("offset", "ids", "query", "key", "key", "query", "sum", "sum")[: len(operands)]
    _, _, q, k, *_ = operands
    shapes = {
        "query": jax.ShapeDtypeStruct(q.shape, q.dtype),
        "key": jax.ShapeDtypeStruct(k.shape, k.dtype),
        "sum": jax.ShapeDtypeStruct((call.batch, call.num_heads, call.q_len), jnp.float32),
    }
    return pl.pallas_call(
        partial(kernel, call, block_q, block_k),
        grid=(blocks, call.num_kv_heads if by_key else call.num_heads, call.batch),
        in_specs=[None if x is None else specs[kind] for kind, x in zip(inputs, operands, strict=True)],
        out_specs=tuple(specs[kind] for kind in outputs),
        out_shape=tuple(shapes[kind] for kind in outputs),
        # Parameters of Triton's also choose Triton, which is not each JAX version's default on a GPU.
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        cost_estimate=cost(call, products, (*operands, *(shapes[kind] for kind in outputs))),
        interpret=interpret,
        name=f"attention_{name or 'forward'}".rstrip("_"),
    )(*operands)


def _specs(call: Call, block_q: int, block_k: int, by_key: bool) -> dict[str, Any]:
    """The part of each array that a program may reach: its head in whole length, since the mask decides on blocks.

    A head of queries goes with its one of keys; `by_key`, a head of keys goes with all of its group's queries.
    """
    width, q_len, kv_len = width_of(call), max(call.q_len, block_q), max(call.kv_len, block_k)
    heads, group = (call.group if call.group > 1 else None, 1) if by_key else (None, call.group)
    return {
        "offset": pl.BlockSpec((1,), lambda block, head, batch: (0,)),
        "ids": pl.BlockSpec((None, max(q_len, kv_len)), lambda block, head, batch: (batch, 0)),
        "query": pl.BlockSpec((None, q_len, heads, width), lambda block, head, batch: (batch, 0, head, 0)),
        "key": pl.BlockSpec((None, kv_len, None, width), lambda block, head, batch: (batch, 0, head // group, 0)),
        "sum": pl.BlockSpec((None, heads, q_len), lambda block, head, batch: (batch, head, 0)),
    }
