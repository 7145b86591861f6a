"""Norms and their gradients, on rows at hand: whole arrays in XLA's implementation, blocks in the kernels'.

Rows come in pieces, `[rows, width]` each, whose columns together are embed's, with zeros beyond it. All are float32 or
wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import repeat
from operator import add
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jax_kernels._ops.norms.call import Call

Pieces: TypeAlias = Iterable[jax.Array]


class Statistics(NamedTuple):
    """The mean of each row, None for rms_norm, and the reciprocal of its deviation, `[rows, 1]`."""

    mean: jax.Array | None
    reciprocal: jax.Array


def added(x: jax.Array, residual: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The values to normalize, in x's type and wide. A sum is rounded first: the backward will see no more of it."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if residual is None:
        return x, x.astype(wide)
    total = (x.astype(wide) + residual.astype(wide)).astype(x.dtype)
    return total, total.astype(wide)


def statistics(call: Call, values: Pieces, inside: Iterable[jax.Array | None] = repeat(None)) -> Statistics:
    """`inside` tells the columns of a piece that a row has from those beyond embed; None where it has all."""
    if not call.is_centred:
        return Statistics(None, _reciprocal(call, values))
    mean = _sum(values) / call.embed
    # Not the difference that `centred` forms: what two loops share, XLA would write out for a CPU.
    differences = (mean - piece for piece in values)
    kept = (d if mask is None else jnp.where(mask, d, 0.0) for d, mask in zip(differences, inside, strict=False))
    return Statistics(mean, _reciprocal(call, kept))


def _reciprocal(call: Call, values: Iterable[jax.Array]) -> jax.Array:
    return jax.lax.rsqrt(_sum(jnp.square(piece) for piece in values) / call.embed + call.epsilon)


def centred(values: jax.Array, stats: Statistics) -> jax.Array:
    return values if stats.mean is None else values - stats.mean


def scaled(values: jax.Array, stats: Statistics, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """A piece normalized, then scale and bias `[width]`."""
    out = centred(values, stats) * stats.reciprocal * scale
    return out if bias is None else out + bias


class Pulls(NamedTuple):
    """The parts of each row's gradient, `[rows, 1]`, that vanish because the row moves its own statistics.

    Means over the columns, of the gradient of the normalized values times those values, and of that gradient alone.
    """

    along: jax.Array
    shift: jax.Array | None


def pulls(call: Call, stats: Statistics, pieces: Iterable[tuple[jax.Array, jax.Array, jax.Array]]) -> Pulls:
    """The means over pieces of (values, scale, d_out), each of which is looked at once."""

    def terms() -> Iterator[tuple[jax.Array, jax.Array]]:
        for values, scale, d_out in pieces:
            weighted = d_out * scale
            yield weighted * centred(values, stats), weighted

    along, shift = _sums(terms())
    return Pulls(stats.reciprocal * along / call.embed, shift / call.embed if call.is_centred else None)


def gradients(
    values: jax.Array, stats: Statistics, scale: jax.Array, d_out: jax.Array, pulls: Pulls
) -> tuple[jax.Array, jax.Array]:
    """Gradients of a piece of the normalized array, and the part of scale's gradient that each row adds.

    Each product is formed for itself: what two loops share, XLA would write out for a CPU.
    """
    deviations, reciprocal = centred(values, stats), stats.reciprocal
    d_values = (scale * reciprocal) * d_out - deviations * (reciprocal * reciprocal * pulls.along)
    if pulls.shift is not None:
        d_values -= reciprocal * pulls.shift
    return d_values, d_out * (deviations * reciprocal)


def _sum(pieces: Iterable[jax.Array]) -> jax.Array:
    [total] = _sums((piece,) for piece in pieces)
    return total


def _sums(pieces: Iterable[tuple[jax.Array, ...]]) -> list[jax.Array]:
    """Sums of several values over the columns of all pieces, each `[rows, 1]`.

    Pieces of a width are added to one another first: a sum along a row crosses registers, lanes and warps.
    """
    by_width: dict[int, tuple[jax.Array, ...]] = {}
    for values in pieces:
        width = values[0].shape[-1]
        by_width[width] = tuple(map(add, by_width[width], values)) if width in by_width else values
    along_rows = ([jnp.sum(x, axis=-1, keepdims=True) for x in values] for values in by_width.values())
    return [reduce(add, parts) for parts in zip(*along_rows, strict=True)]
