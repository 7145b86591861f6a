"""Attention for TPUs: Pallas kernels that hold a block of queries against one block of keys after another.

Scores live in VMEM, a piece at a time. The forward kernel keeps the maximum, sum and weighted values of its queries so
far (the online softmax) and writes them once. The backward recomputes the probabilities from the log-sum-exp, in one
kernel for the gradient of queries and one for that of keys and values, which also sums over the heads of a group.

The mask is turned into a list of the pairs of blocks to visit (`Plan.visits`), which the last part of each grid walks:
pairs that it hides are not in the list, so they are neither fetched nor stepped over, and those where all see all are
computed without it. Where it is known only when the program runs (a traced offset, segment ids), so is the grid's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.cost import FORWARD, OF_KEYS, OF_QUERIES, cost
from jax_kernels._ops.attention.pallas_tpu.kernels import LOG2E, Visit, forward_kernel, keys_kernel, queries_kernel
from jax_kernels._ops.attention.pallas_tpu.plan import BLOCK_BITS, LANES, Plan
from jax_kernels.implementations import Config, Device, is_interpreting

Pair: TypeAlias = tuple[Array, Array]
Seeing: TypeAlias = tuple[Array | None, Array | None]  # what the mask waits for: the offset if traced, segment ids
Arrays: TypeAlias = Sequence[tuple[str, Any]]  # arrays, or their dtypes, each with its kind

VMEM_LIMIT_BYTES = 48 * 2**20  # a v5p core has 64 MiB, v5e and v6e 128; a kernel gets 16 unless it asks
MOST_VISITS = 2**17  # 4 bytes each, of 1 MiB of scalar memory


def unsupported_reason(call: Call, device: Device) -> str | None:
    if device.platform != "tpu" or any(old in device.kind for old in ("v2", "v3", "v4")):
        return "needs a TPU v5 or later"
    if call.dtype not in ("bfloat16", "float16", "float32"):
        return call.dtype
    if call.is_empty:
        return "an empty array"
    if call.head_dim > 512:
        return f"head_dim {call.head_dim} is more than 512"
    return None if configs(call, device) else "too many blocks for scalar memory"


def configs(call: Call, device: Device) -> Sequence[Config]:
    """A large block is scheduled best, and a visit costs some 150 cycles beyond its work; but blocks on the edge of a
    mask are computed whole. The order is that of cycles counted in compiled kernels; nothing was measured."""
    sizes = [(1024, 1024), (512, 512), (512, 1024), (256, 512), (128, 128)]
    if call.dtype != "bfloat16" or call.head_dim > 256:  # larger blocks take a minute to compile
        sizes = [(512, 512), (256, 512), (128, 128)]
    elif call.window is not None or (call.causal and call.q_len <= 4096 and "v6" not in device.kind):
        sizes[:2] = sizes[1::-1]
    most = MOST_VISITS // (call.batch if call.has_segments else 1)
    blocks = dict.fromkeys((_fit(call.q_len, q), _fit(call.kv_len, k)) for q, k in sizes)
    counts = {(q, k): (pl.cdiv(call.q_len, q), pl.cdiv(call.kv_len, k)) for q, k in blocks}
    few = [sizes for sizes, (m, n) in counts.items() if m * n <= most and max(m, n) <= 2**BLOCK_BITS]
    return tuple((("block_q", q), ("block_k", k)) for q, k in few)


def _fit(length: int, most: int) -> int:
    """The multiple of the lanes, up to `most`, that covers the length in as few blocks with the least padding."""
    return pl.cdiv(pl.cdiv(length, pl.cdiv(length, most)), LANES) * LANES


def attention(
    call: Call, config: Config, q: Array, k: Array, v: Array, q_offset: Array | None, segment_ids: Array | None
) -> Pair:
    """Out as q `[batch, q_len, num_heads, head_dim]`, log-sum-exp `[batch, num_heads, q_len]` float32."""
    # The matrix units have no float16, and bfloat16 would lose three of its bits.
    dtype = jnp.float32 if q.dtype == jnp.float16 else q.dtype
    queries, keys, values = (x.astype(dtype).transpose(0, 2, 1, 3) for x in (q, k, v))
    ids = None if segment_ids is None else segment_ids.astype(jnp.int32)
    out, lse = _attention(call, config, queries, keys, values, (q_offset, ids))
    return out.transpose(0, 2, 1, 3).astype(q.dtype), lse


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(call: Call, config: Config, q: Array, k: Array, v: Array, seeing: Seeing) -> Pair:
    """q `[batch, num_heads, q_len, head_dim]`, k and v `[batch, num_kv_heads, kv_len, head_dim]`; out as q."""
    return _forward(call, config, q, k, v, seeing)[0]


def _forward(call: Call, config: Config, q: Array, k: Array, v: Array, seeing: Seeing) -> tuple[Pair, Any]:
    plan = Plan(call, dict(config)["block_q"], dict(config)["block_k"])
    operands, outputs = [("queries", q), ("keys", k), ("keys", v)], [("queries", q.dtype), ("numbers", jnp.float32)]
    scratch = [(plan.block_q, LANES), (plan.block_q, LANES), (plan.block_q, call.head_dim)]
    out, lse = _run(plan, forward_kernel, FORWARD, seeing, operands, outputs, scratch)
    return (out, lse[:, :, 0]), (q, k, v, seeing, out, lse[:, :, 0])


def _backward(call: Call, config: Config, residuals: Any, cotangents: Pair) -> tuple[Any, ...]:
    (q, k, v, seeing, out, lse), (d_out, d_lse) = residuals, cotangents
    # Each score's gradient is p (dp - delta), and the log-sum-exp's own gradient adds p d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1) - d_lse
    lse2 = LOG2E * jnp.where(jnp.isneginf(lse), 0.0, lse)
    operands = [("queries", q), ("keys", k), ("keys", v), ("queries", d_out)]
    operands += [("numbers", lse2[:, :, None]), ("numbers", delta[:, :, None])]
    plan = Plan(call, dict(config)["block_q"], dict(config)["block_k"])
    scratch = [(plan.block_q, LANES), (plan.block_q, LANES), (plan.block_q, call.head_dim)]
    (d_q,) = _run(plan, queries_kernel, OF_QUERIES, seeing, operands, [("queries", q.dtype)], scratch)
    outputs, scratch = [("keys", k.dtype), ("keys", v.dtype)], [(plan.block_k, call.head_dim)] * 2
    d_k, d_v = _run(replace(plan, keys_outer=True), keys_kernel, OF_KEYS, seeing, operands, outputs, scratch)
    return d_q, d_k, d_v, None


_attention.defvjp(_forward, _backward)


def _run(
    plan: Plan,
    kernel: Callable[..., None],
    products: int,
    seeing: Seeing,
    operands: Arrays,
    outputs: Arrays,
    scratch: Sequence[Any],
) -> list[Array]:
    """The kernel's outputs, asked for by kind and dtype. It is given a Visit, operands, outputs and scratch."""
    call, mask = plan.call, plan.call.mask(*seeing)
    ids, num_ids = seeing[1], 2 if call.has_segments else 0
    visits, count = plan.visits(mask.q_offset, ids)
    if ids is not None:
        column, row = ("k_column", "q_row") if plan.keys_outer else ("q_column", "k_row")
        wide = jnp.broadcast_to(ids[:, :, None], (*ids.shape, LANES))
        operands = [(column, wide), (row, ids[:, None]), *operands]
    inputs = [_resize(x, plan.shape(kind, *plan.padded)) for kind, x in operands]
    shapes = [jax.ShapeDtypeStruct(plan.shape(kind, *plan.padded), dtype) for kind, dtype in outputs]
    inner = ((count, "arbitrary"), (call.group, "arbitrary" if plan.keys_outer else "parallel"))
    grid = ((call.batch, "parallel"), (call.num_kv_heads, "parallel"), *(inner if plan.keys_outer else inner[::-1]))
    outs = pl.pallas_call(
        lambda visits, offset, *refs: kernel(Visit(plan, visits, offset, refs[:num_ids]), *refs[num_ids:]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=tuple(size for size, _ in grid),
            in_specs=[plan.spec(kind) for kind, _ in operands],
            out_specs=[plan.spec(kind) for kind, _ in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=tuple(order for _, order in grid), vmem_limit_bytes=VMEM_LIMIT_BYTES
        ),
        cost_estimate=cost(call, products, (*inputs, *shapes)),
        interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
        name=f"attention_{kernel.__name__}",
    )(visits, jnp.full(1, mask.q_offset, jnp.int32), *inputs)
    return list(map(_resize, outs, (plan.shape(kind, call.q_len, call.kv_len) for kind, _ in outputs)))


def _resize(x: Array, shape: tuple[int, ...]) -> Array:
    """More of it is zeros, less is cut off."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, to - size, 0) for size, to in zip(x.shape, shape, strict=True)])
