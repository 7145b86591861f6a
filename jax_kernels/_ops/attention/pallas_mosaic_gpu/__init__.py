"""Attention for Hopper in Pallas's Mosaic GPU: warpgroup products, bulk copies, and warpgroups that do one thing each.

A block of threads is one memory warpgroup and two that compute (`pipeline`). The memory warpgroup fills shared memory
by bulk copies (TMA), which put zeros where they read past the end of an array. Stores of matrices drop rows past the
end; stores of vectors do not, so those results have room for whole tiles. No length has to fit a block. What a tile
needs throughout is loaded once, what it walks through goes into rings.

The forward pass is FlashAttention-3's (arXiv 2407.08608), see `forward`. The backward pass recomputes the probabilities
from the log-sum-exp, in one kernel over tiles of queries for dq and one over tiles of keys for dk and dv (`backward`):
seven products where five would do if dq were added up in memory, whose order of addition, and so its bits, would change
from run to run. Blocks that the mask hides are skipped, and only those that its edges cross are masked (`tiling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.cost import FORWARD, OF_KEYS, OF_QUERIES
from jax_kernels._ops.attention.pallas_mosaic_gpu.backward import sum_gradients
from jax_kernels._ops.attention.pallas_mosaic_gpu.forward import attend
from jax_kernels._ops.attention.pallas_mosaic_gpu.pipeline import run
from jax_kernels._ops.attention.pallas_mosaic_gpu.tiling import WARPGROUPS, Side, Tiling
from jax_kernels._ops.attention.pallas_mosaic_gpu.warpgroup import LOG2_E, ROWS, plgpu
from jax_kernels.implementations import Config, Device

MaybeArray: TypeAlias = jax.Array | None

try:  # the package whose ptxas JAX takes; `unsupported_reason` names the fault that older ones have
    NVCC = tuple(map(int, metadata.version("nvidia-cuda-nvcc-cu12").split(".")[:3]))
except metadata.PackageNotFoundError:
    NVCC = ()
MOST_BLOCKS = 2**16 - 1  # along each axis but one of a CUDA grid


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if plgpu is None:
        return "JAX 0.10's Mosaic GPU needs absl-py, which is not installed"
    if device.platform != "gpu" or device.compute_capability is None or device.compute_capability[0] != 9:
        return "needs compute capability 9.x"
    if call.dtype not in ("bfloat16", "float16"):
        return f"{call.dtype} is not bfloat16 or float16"
    if call.head_dim > 256:
        return f"head_dim {call.head_dim} is over 256"
    if call.is_empty:
        return "an empty array"
    if call.scale <= 0.0:
        return "scale is not positive"  # the maximum is taken before scaling
    if max(call.batch, pl.cdiv(max(call.q_len, call.kv_len), ROWS)) > MOST_BLOCKS:
        return "more blocks than a CUDA grid has"
    return "ptxas of CUDA 12.8 to 12.9.0 miscompiles masks" if (12, 8) <= NVCC < (12, 9, 86) else None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """All fit shared memory, and registers but for a few that ptxas spills; more where masks meet the largest."""
    if call.head_dim <= 64:
        sizes = [(64, 128, 3, 128, 64, 3), (64, 128, 2, 64, 64, 2), (64, 256, 2, 128, 64, 2)]
    elif call.head_dim <= 128:
        sizes = [(64, 128, 2, 64, 64, 2), (64, 64, 4, 64, 64, 3), (64, 128, 2, 128, 64, 2)]
    else:
        sizes = [(64, 64, 2, 64, 64, 2)]
    names = ("block_q", "block_k", "stages", "block_k_dq", "block_q_dkv", "stages_backward")
    return [tuple(zip(names, chosen, strict=True)) for chosen in sizes]


def attention(
    call: Call, config: Config, q: jax.Array, k: jax.Array, v: jax.Array, q_offset: MaybeArray, segment_ids: MaybeArray
) -> tuple[jax.Array, jax.Array]:
    """Out as q `[batch, q_len, num_heads, head_dim]`, log-sum-exp `[batch, num_heads, q_len]` float32."""
    # Bulk copies cut arrays into tiles of 8 rows and of 16 columns or more, all of which belong to one warpgroup.
    columns = -call.head_dim % (16 if call.head_dim <= 128 else 16 * WARPGROUPS)
    padded = [_padded(x, (0, -x.shape[1] % 8, 0, columns)) for x in (q, k, v)]
    offset = None if q_offset is None else q_offset.astype(jnp.int32).reshape(1)
    given = [] if segment_ids is None else [segment_ids.astype(jnp.int32)[:, None]]
    ids = tuple(_padded(x, (0, 0, -call.q_len % 8)) for x in given)
    out, lse = _attention(call, config, *padded, offset, ids)
    return out[:, : call.q_len, :, : call.head_dim], lse[:, :, : call.q_len]


def _padded(x: jax.Array, columns: tuple[int, ...]) -> jax.Array:
    """Zeros behind each axis. The same array if there are none, so that it need not be kept twice for the backward."""
    return jnp.pad(x, [(0, count) for count in columns]) if any(columns) else x


def _forward(call: Call, config: Config, *operands: Any) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    """The results for padded q, k and v, an offset `[1]` or None, and segment ids `[batch, 1, len]` if any."""
    q, k, v, offset, ids = operands
    size = dict(config)
    tiling = Tiling(call, of_keys=False, rows=size["block_q"], block=size["block_k"], stages=size["stages"])
    # A warpgroup stores its whole tile of the log-sum-exp (see `pipeline`), so each head has room for whole tiles.
    types = q, jax.ShapeDtypeStruct((call.batch, call.num_heads, tiling.tiled_length), jnp.float32)
    out, lse = run(
        "attention", FORWARD, tiling, attend, types, offset, Side((q,), ids), (Side((k,), ids), Side((v,), ()))
    )
    lse = lse[:, :, : q.shape[1]]
    return (out, lse), (*operands, out, lse)


def _backward(
    call: Call, config: Config, residuals: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[MaybeArray, ...]:
    q, k, v, offset, ids, out, lse = residuals
    d_out, d_lse = cotangents
    # Each score's gradient is p (dp - delta), and the log-sum-exp's own gradient adds p d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1).transpose(0, 2, 1) - d_lse
    # In units of exp2; rows that see nothing get probabilities of zero.
    lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2_E)
    queries, keys, size = Side((q, d_out), (lse, delta, *ids)), Side((k, v), ids), dict(config)
    parts = 1 if q.shape[-1] <= 128 else WARPGROUPS
    tile = partial(Tiling, call, rows=ROWS, stages=size["stages_backward"], parts=parts)
    by_query, by_key = tile(of_keys=False, block=size["block_k_dq"]), tile(of_keys=True, block=size["block_q_dkv"])
    (d_q,) = run("attention_d_q", OF_QUERIES, by_query, sum_gradients, (q,), offset, queries, (keys,))
    d_k, d_v = run("attention_d_kv", OF_KEYS, by_key, sum_gradients, (k, v), offset, keys, (queries,))
    return d_q, d_k, d_v, None, None


_attention: Any = jax.custom_vjp(lambda *operands: _forward(*operands)[0], nondiff_argnums=(0, 1))
_attention.defvjp(_forward, _backward)
