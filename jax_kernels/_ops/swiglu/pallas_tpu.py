"""SwiGLU for TPUs as Pallas kernels.

Forward, a block of the output keeps its two products in VMEM while the blocks along embed pass by, each of x fetched
once for both, and is activated on the way out. The way back begins with one pass over the kept products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_kernels._ops.swiglu.call import Call
from jax_kernels._ops.swiglu.gradient import Pair, activate, d_products, differentiable
from jax_kernels.implementations import Config, Device, is_interpreting

LANES = 128
VMEM_LIMIT_BYTES = 48 * 2**20  # a v5p core has 64 MiB, v5e and v6e 128; a kernel gets 16 unless it asks
NAMES = ("block_tokens", "block_mlp", "block_embed")
PASS_BLOCK = (256, 1024)


def _project(
    call: Call, config: Config, x: jax.Array, gate: jax.Array, up: jax.Array, *, keep: bool
) -> list[jax.Array]:
    tokens, mlp, embed = (dict(config)[name] for name in NAMES)
    weight_spec = pl.BlockSpec((embed, mlp), lambda row, column, along: (along, column))
    out_spec = pl.BlockSpec((tokens, mlp), lambda row, column, along: (row, column))
    count = 3 if keep else 1
    results: list[jax.Array] = pl.pallas_call(
        partial(_project_kernel, call),
        grid=(pl.cdiv(call.tokens, tokens), pl.cdiv(call.mlp, mlp), pl.cdiv(call.embed, embed)),
        in_specs=[pl.BlockSpec((tokens, embed), lambda row, column, along: (row, along)), weight_spec, weight_spec],
        out_specs=[out_spec] * count,
        out_shape=[jax.ShapeDtypeStruct((call.tokens, call.mlp), x.dtype)] * count,
        scratch_shapes=[pltpu.VMEM((tokens, mlp), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT_BYTES
        ),
        interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
        name="swiglu_forward",
    )(x, gate, up)
    return results


def _project_kernel(call: Call, x: Any, gate: Any, up: Any, out: Any, *refs: Any) -> None:
    *products, g_sum, u_sum = refs
    along, embed = pl.program_id(2), x.shape[1]

    @pl.when(along == 0)
    def _() -> None:
        g_sum[...] = u_sum[...] = jnp.zeros_like(g_sum)

    def block(ref: Any, axis: int) -> jax.Array:
        """Zero beyond the end of embed, where there may be anything."""
        values: jax.Array = ref[...]
        if call.embed % embed == 0:
            return values
        inside = lax.broadcasted_iota(jnp.int32, values.shape, axis) < call.embed - along * embed
        return jnp.where(inside, values, jnp.zeros_like(values))

    # Unless told, the units round float32 operands to bfloat16.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    values = block(x, 1)
    for total, ref in ((g_sum, gate), (u_sum, up)):
        total[...] += jnp.dot(values, block(ref, 0), precision=precision, preferred_element_type=jnp.float32)

    @pl.when(along == pl.num_programs(2) - 1)
    def _() -> None:
        g, u = g_sum[...], u_sum[...]
        for ref, result in zip((out, *products), (activate(g, u), g, u), strict=False):
            ref[...] = result.astype(ref.dtype)


def _pull(call: Call, config: Config, d_out: jax.Array, g: jax.Array, u: jax.Array) -> Pair:
    tokens, mlp = map(min, PASS_BLOCK, (call.tokens, call.mlp))
    spec = pl.BlockSpec((tokens, mlp), lambda row, column: (row, column))
    d_g, d_u = pl.pallas_call(
        _pull_kernel,
        grid=(pl.cdiv(call.tokens, tokens), pl.cdiv(call.mlp, mlp)),
        in_specs=[spec] * 3,
        out_specs=[spec] * 2,
        out_shape=[jax.ShapeDtypeStruct(g.shape, g.dtype)] * 2,
        input_output_aliases={1: 0, 2: 1},  # the products are not read again: their gradients take their place
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=pltpu.InterpretParams(detect_races=True) if is_interpreting() else False,
        name="swiglu_backward",
    )(d_out, g, u)
    return d_g, d_u


def _pull_kernel(d_out: Any, g: Any, u: Any, d_g: Any, d_u: Any) -> None:
    for ref, values in zip((d_g, d_u), d_products(d_out[...], g[...], u[...]), strict=True):
        ref[...] = values.astype(ref.dtype)


swiglu = differentiable(_project, _pull, lax.Precision.HIGHEST)


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that the kernels do not support this call on this device; None if they do."""
    if device.platform != "tpu" or any(old in device.kind for old in ("v2", "v3", "v4")):
        return "needs a TPU v5 or later"
    if call.dtype not in ("bfloat16", "float32"):
        return call.dtype  # of the narrow types, the matrix units have bfloat16 alone
    if 0 in (call.tokens, call.embed, call.mlp):
        return "an empty array"
    return None


def configs(call: Call, device: Device) -> Sequence[Config]:
    """Block sizes to try, the best guess first, with blocks no longer than what they divide; ordered by reasoning.

    A block of 1,024 x 1,024 takes 680 operations for each byte that it fetches, and a v6e has time for 560. Products of
    float32, six of bfloat16 each, keep smaller blocks as busy.
    """
    wide = ((1024, 1024, 1024), (1024, 1024, 512), (1024, 512, 1024), (512, 1024, 1024), (512, 512, 1024))
    sizes = ((512, 512, 512), (256, 512, 512)) if call.dtype == "float32" else wide
    blocks = ((min(tokens, call.tokens), min(mlp, call.mlp), _along(call.embed, embed)) for tokens, mlp, embed in sizes)
    return [tuple(zip(NAMES, block, strict=True)) for block in dict.fromkeys(blocks)]


def _along(length: int, most: int) -> int:
    """The largest block up to `most` that divides the length, or, rather than a far smaller one, the smallest that
    covers it in as few blocks."""
    if length <= most:
        return length
    few = pl.cdiv(length, most)
    return next(
        (size for size in range(most, most // 2 - 1, -LANES) if length % size == 0),
        pl.cdiv(pl.cdiv(length, few), LANES) * LANES,
    )
