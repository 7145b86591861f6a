"""Loss and gradients around two kernels, which form blocks of logits on chip: no array `[tokens, vocab]` is ever held.

Forward, a kernel reduces the logits of each token to a few numbers. The way back goes by chunks of the vocabulary. A
kernel forms the chunk's logits anew and writes their gradient, rounded as x is, and both gradients are plain products
with it, which the compiler's own kernels do at full speed: four products for the three of the reference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_kernels._ops.linear_cross_entropy.call import Call, counts, inside, loss_of
from jax_kernels.implementations import Config

LANES = 128

Gradients: TypeAlias = tuple[Array, Array]


class Chunk(NamedTuple):
    """Columns of the weight from `start` on, which may be traced."""

    start: Any
    size: int


@dataclass(frozen=True)
class Kernels(ABC):
    """The kernels of an implementation, for a call.

    Labels are in the vocabulary; numbers of each token are `[tokens]` float32.

    Attributes:
        config: with `block_vocab`, the columns of a kernel's block, and `chunks`, the parts to cut the vocabulary into.
    """

    call: Call
    config: Config
    interpret: bool

    @abstractmethod
    def statistics(self, x: Array, weight: Array, labels: Array) -> tuple[Array, Array, Array | None]:
        """The log-sum-exp of each token's capped logits, the label's logit and, if there is smoothing, their sum."""

    @abstractmethod
    def d_logits(self, x: Array, weight: Array, labels: Array, lse: Array, d_loss: Array, chunk: Chunk) -> Array:
        """The gradient of the logits of a chunk of the vocabulary as x, `[tokens, columns of the chunk]`, then zeros up
        to a multiple of LANES."""

    def option(self, name: str) -> int:
        return dict(self.config)[name]


def linear_cross_entropy(kernels: Kernels, x: Array, weight: Array, labels: Array) -> Array:
    """The loss of each token `[tokens]` float32, or their sum."""
    loss = _each(kernels, x, weight, labels)
    return loss if kernels.call.reduction == "none" else jnp.sum(loss)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _each(kernels: Kernels, x: Array, weight: Array, labels: Array) -> Array:
    return _forward(kernels, x, weight, labels)[0]


def _forward(kernels: Kernels, x: Array, weight: Array, labels: Array) -> tuple[Array, Any]:
    here = inside(kernels.call, labels)
    lse, label_logit, logit_sum = kernels.statistics(x, weight, here)
    return loss_of(kernels.call, labels, lse, label_logit, logit_sum), (x, weight, labels, lse)


def _backward(kernels: Kernels, residuals: Any, d_loss: Array) -> tuple[Array, Array, None]:
    call = kernels.call
    x, weight, labels, lse = residuals
    here = inside(call, labels)
    asked, scale = _in_range(call, jnp.where(counts(call, labels), d_loss, 0.0))

    def add(chunk: Chunk, weight: Array, asked: Array, gradients: Gradients) -> Gradients:
        d_x, d_weight = gradients
        d_logits = kernels.d_logits(x, weight, here, lse, asked, chunk)
        d_x += _product(d_logits, columns(weight, chunk).T, jnp.float32)
        d_chunk = _product(x.T, d_logits, weight.dtype if scale is None else jnp.float32)
        d_chunk = _scaled(d_chunk, scale, weight.dtype)[:, : chunk.size]
        return d_x, lax.dynamic_update_slice(d_weight, d_chunk, (0, chunk.start))

    size, count, rest = chunks(kernels)
    gradients = (jnp.zeros(x.shape, jnp.float32), jnp.zeros(weight.shape, weight.dtype))
    gradients = lax.fori_loop(0, count, lambda i, g: add(Chunk(i * size, size), weight, asked, g), gradients)
    if rest:
        # The last chunk waits for the others, else the compiler may hold its part of the weight and more meanwhile.
        weight, asked, gradients = lax.optimization_barrier((weight, asked, gradients))
        gradients = add(Chunk(count * size, rest), weight, asked, gradients)
    d_x, d_weight = gradients
    return _scaled(d_x, scale, x.dtype), d_weight, None


_each.defvjp(_forward, _backward)


def chunks(kernels: Kernels) -> tuple[int, int, int]:
    """Columns of a chunk, which are whole blocks, how many such chunks there are, and the columns that are left."""
    vocab, block = kernels.call.vocab, kernels.option("block_vocab")
    size = min(-(-vocab // (kernels.option("chunks") * block)) * block, vocab)
    return size, vocab // size, vocab % size


def columns(weight: Array, chunk: Chunk, multiple: int = LANES) -> Array:
    """A chunk of the weight, with columns of zeros up to a multiple: rows that start at an even address are read and
    multiplied many times as fast as those of an odd vocabulary."""
    taken = lax.dynamic_slice_in_dim(weight, chunk.start, chunk.size, axis=1)
    return jnp.pad(taken, ((0, 0), (0, -chunk.size % multiple)))


def _in_range(call: Call, d_loss: Array) -> tuple[Array, Array | None]:
    """The loss's gradient for each token, scaled into the range of the type, and the factor that undoes the scaling.

    float16 would lose the small values that a mean over many tokens asks for.
    """
    if call.dtype != "float16":
        return d_loss, None
    largest = jnp.max(jnp.abs(d_loss))
    scale = jnp.where(largest > 0.0, largest, 1.0)
    return d_loss / scale, scale


def _scaled(gradient: Array, scale: Array | None, dtype: Any) -> Array:
    return (gradient if scale is None else scale * gradient).astype(dtype)


def _product(a: Array, b: Array, dtype: Any) -> Array:
    # Without a word on precision, float32 is rounded to TF32 on a GPU and to bfloat16 on a TPU.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=dtype)
