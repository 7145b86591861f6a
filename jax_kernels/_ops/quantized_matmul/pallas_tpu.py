"""The product on TPUs as a Pallas kernel: 8-bit blocks into the matrix unit, scales in registers.

The grid walks over blocks of the results and, for each, along k. Products are summed as the matrix unit gives them, of
int8 exactly in int32, to the end of a block of scales; then they are scaled and added to the total in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_kernels._ops.quantized_matmul.call import Call
from jax_kernels._ops.quantized_matmul.gradient import differentiable
from jax_kernels.implementations import Config, Device, is_interpreting

Ref: TypeAlias = Any

LANES, SUBLANES = 128, 32  # of a tile of 8-bit numbers
VMEM_LIMIT_BYTES = 48 * 2**20  # a v5p core has 64 MiB, v5e and v6e 128; a kernel gets 16 unless it asks
LONGEST_K, LONGEST_SCALED_K = 8192, 1024  # of a block; a product for each block of scales in it makes a long program

# What the matrix units multiply as it is, by a word of the device's kind (jax/_src/tpu_info.py, is_matmul_supported).
# v5 and v6 have other types of 8 bits than float8_e4m3fn, and TPU7x has no int8.
MULTIPLIED = {"int8": ("v5", "v6"), "float8_e4m3fn": ("TPU7",)}


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernel does not support this call on this device; None if it does."""
    if device.platform != "tpu" or not any(kind in device.kind for kind in MULTIPLIED[call.dtype]):
        return f"needs a TPU that multiplies {call.dtype}"
    if 0 in (call.m, call.k, call.n):
        return "an empty array"
    if call.num_blocks > 1 and call.block_k % LANES:
        return f"a scale for {call.block_k} of k, no multiple of {LANES}"
    return None if configs(call, device) else "too many scales for VMEM"


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Block sizes to try, the best guess first: by multiplications per cycle in compiled kernels, nothing was measured.

    Blocks with all of k are best, whose sums need not wait in memory: a v5e's matrix units idle 1 % of the cycles.
    """
    sizes = [(512, 1024, 4096), (1024, 1024, 4096), (512, 512, 4096), (512, 1024, 2048), (256, 512, 2048)]
    if "v6" in device.kind:  # memory is slow beside its matrix units
        sizes[:2] = sizes[1::-1]
    if call.m <= LANES:  # nothing is computed while the first block of the weight is read
        sizes = [(LANES, 512, 4096), (LANES, 1024, 2048), (LANES, 512, 2048), (LANES, 256, 4096)]
    if call.num_blocks > 1:  # the vector unit, which scales each block of scales, has more to do than the matrix unit
        sizes = [(512, 1024, 1024), (256, 1024, 1024), (512, 512, 512), (256, 512, 512)]
    lengths = _lengths(call)
    configs = []
    for m, n, k in sizes:
        block_k = next((x for x in lengths if x >= k), lengths[-1])
        blocks = (_fit(call.m, m, SUBLANES), _fit(call.n, n, LANES), block_k)
        if _vmem_bytes(call, *blocks) <= VMEM_LIMIT_BYTES:
            configs.append((("block_m", blocks[0]), ("block_n", blocks[1]), ("block_k", blocks[2])))
    return list(dict.fromkeys(configs))


def _vmem_bytes(call: Call, block_m: int, block_n: int, block_k: int) -> int:
    """Blocks come and go in pairs, one of which is moved meanwhile; a row of scales fills lanes. Sums, total, and the
    products before they are added to either."""
    moved = (block_m + block_n) * block_k + block_m * block_n * jnp.dtype(call.out_dtype).itemsize
    scales = 4 * block_m * _up(call.num_blocks, LANES)
    return 2 * (moved + scales) + 3 * 4 * block_m * block_n


def _fit(length: int, most: int, tile: int) -> int:
    """The multiple of a tile, up to `most`, that covers the length in as few blocks with the least beyond it."""
    return _up(pl.cdiv(length, pl.cdiv(length, most)), tile)


def _up(length: int, tile: int) -> int:
    return pl.cdiv(length, tile) * tile


def _lengths(call: Call) -> list[int]:
    """Those that a block of k may have: so that it ends with a block of scales or lies within one."""
    k = _up(call.k, LANES)
    scales = k if call.num_blocks == 1 else call.block_k
    longest = LONGEST_K if call.num_blocks == 1 else LONGEST_SCALED_K
    lengths = range(LANES, min(k, longest) + 1, LANES)
    return [x for x in lengths if k % x == 0 and (x % scales == 0 or scales % x == 0)]


@differentiable
def quantized_matmul(call: Call, config: Config, x: Array, weight: Array, x_scale: Array, weight_scale: Array) -> Array:
    """`[m, n]` of `out_dtype`."""
    block_m, block_n, block_k = (size for _, size in config)
    m, k, n = _up(call.m, SUBLANES), _up(call.k, LANES), _up(call.n, LANES)
    plan = Plan(call, block_k, k // block_k)
    # A row of scales for each row of x, and for each block of k a row of them for the columns of the weight.
    x_scale = jnp.repeat(x_scale, call.num_blocks // call.x_blocks, axis=1)
    weight_scale = jnp.repeat(weight_scale, call.num_blocks // call.weight_blocks, axis=0)
    weight_scale = jnp.repeat(weight_scale, call.n // call.column_blocks, axis=1)
    weight_scale = _resize(weight_scale, (call.num_blocks, n)).reshape(-1, plan.scales, n)
    sums = pltpu.VMEM((block_m, block_n), call.accumulator)
    total = pltpu.VMEM((block_m, block_n), jnp.float32)
    out: Array = pl.pallas_call(
        partial(_kernel, plan),
        grid=(pl.cdiv(m, block_m), pl.cdiv(n, block_n), plan.steps),
        in_specs=[
            pl.BlockSpec((block_m, block_k), lambda i, j, step: (i, step)),
            pl.BlockSpec((block_k, block_n), lambda i, j, step: (step, j)),
            pl.BlockSpec((block_m, call.num_blocks), lambda i, j, step: (i, 0)),
            pl.BlockSpec((None, plan.scales, block_n), lambda i, j, step: (step // plan.steps_of_scale, 0, j)),
        ],
        out_specs=pl.BlockSpec((block_m, block_n), lambda i, j, step: (i, j)),
        out_shape=jax.ShapeDtypeStruct((m, n), call.out_dtype),
        scratch_shapes=[sums, total],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT_BYTES
        ),
        interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
        name="quantized_matmul",
    )(_resize(x, (m, k)), _resize(weight, (k, n)), _resize(x_scale, (m, call.num_blocks)), weight_scale)
    return out[: call.m, : call.n]


def _resize(x: Array, shape: tuple[int, int]) -> Array:
    return jnp.pad(x, [(0, to - size) for size, to in zip(x.shape, shape, strict=True)])


@dataclass(frozen=True)
class Plan:
    """The steps of the kernel along k, so many `steps` of `block_k`."""

    call: Call
    block_k: int
    steps: int

    @property
    def scales(self) -> int:
        """Blocks of scales within a step, 1 where several steps share one."""
        return max(1, self.block_k // self.call.block_k) if self.call.num_blocks > 1 else 1

    @property
    def steps_of_scale(self) -> int:
        return self.steps * self.scales // self.call.num_blocks


def _kernel(plan: Plan, x: Ref, weight: Ref, x_scale: Ref, weight_scale: Ref, out: Ref, sums: Ref, total: Ref) -> None:
    """`sums` of products in a block of scales that several steps share; `total` of several blocks."""
    step, length = pl.program_id(2), plan.block_k // plan.scales

    def scale(products: Array, index: int) -> None:
        """Add the scaled products of a whole block of scales, the `index`-th of this step."""
        block = step // plan.steps_of_scale * plan.scales + index
        lanes = lax.broadcasted_iota(jnp.int32, x_scale.shape, 1)
        factors = jnp.sum(jnp.where(lanes == block, x_scale[...], 0.0), axis=1, keepdims=True)
        scaled = products.astype(jnp.float32) * factors * weight_scale[index : index + 1]
        if plan.call.num_blocks == 1:
            out[...] = scaled.astype(out.dtype)
        else:
            total[...] += scaled

    if plan.call.num_blocks > 1:
        pl.when(step == 0)(lambda: _clear(total))
    for index in range(plan.scales):
        at = slice(index * length, (index + 1) * length)
        products = jnp.dot(x[:, at], weight[at], preferred_element_type=sums.dtype)
        if plan.steps_of_scale == 1:
            scale(products, index)
        else:
            pl.when(step % plan.steps_of_scale == 0)(lambda: _clear(sums))
            sums[...] += products
            pl.when((step + 1) % plan.steps_of_scale == 0)(lambda: scale(sums[...], 0))
    if plan.call.num_blocks > 1:

        @pl.when(step == plan.steps - 1)
        def _() -> None:
            out[...] = total[...].astype(out.dtype)


def _clear(ref: Ref) -> None:
    ref[...] = jnp.zeros_like(ref)
