"""The work of a computing warpgroup: products on tensor cores, scores in registers, vectors from shared memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jax_kernels import implementations
from jax_kernels._ops.attention.call import Call

plgpu: Any
try:
    from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:  # under JAX 0.10 it imports absl, which JAX does not install
    plgpu = None

Ref: TypeAlias = Any
Scalar: TypeAlias = Any  # an int, or an int32 that is known when the program runs

HAS_INTERPRETER = hasattr(plgpu, "InterpretGPUParams")  # not under JAX 0.10
ROWS = 64  # of a warpgroup product
LOG2_E = math.log2(math.e)


def scores(call: Call, products: jax.Array) -> tuple[jax.Array, float]:
    """(x, factor) of products of q and k, with exp(score) = exp2(x factor); under a soft-cap x is the tanh."""
    if call.logit_softcap is None:
        return products, call.scale * LOG2_E
    # By exp2, whose approximation is closer than that of the GPU's tanh.
    power = jnp.exp2(products * (2.0 * LOG2_E * call.scale / call.logit_softcap))
    return 1.0 - 2.0 / (power + 1.0), call.logit_softcap * LOG2_E


def accumulate(*sums: tuple[jax.Array, jax.Array, Ref, Any], meanwhile: Callable[[], None] = lambda: None) -> Any:
    """acc + a @ b[index] of each (acc, a, b, index), acc and a in registers; all that, and `meanwhile`, at once."""
    # The interpreter knows neither a left side in registers nor a sum to begin with.
    if implementations.is_interpreting():
        meanwhile()
        return tuple(acc + jnp.dot(a, b[index], preferred_element_type=jnp.float32) for acc, a, b, index in sums)

    def multiply(accs: tuple[Ref, ...]) -> None:
        for acc, (_, a, b, index) in zip(accs, sums, strict=True):
            plgpu.wgmma(acc, a, b.at[index])
        meanwhile()

    return pl.run_state(multiply)(tuple(plgpu.ACC.init(acc) for acc, *_ in sums))


def zeros(*shape: int) -> jax.Array:
    """Zeros in the layout of a product, or of its sums by row."""
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
    cast: jax.Array = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)
    return cast


def load_vector(ref: Ref, shape: tuple[int, ...], axis: int) -> jax.Array:
    """A vector from shared memory, along axis `axis` of a product of that shape."""
    index = () if HAS_INTERPRETER else ((),)  # which JAX 0.10 asks for
    return lax.broadcast_in_dim(plgpu.load(ref, *index, layout=plgpu.Layout.WGMMA.reduce(1 - axis)), shape, [axis])


def meet(barrier: Ref) -> None:
    """Wait for the other computing warpgroup."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)
