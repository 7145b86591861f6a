"""The program that embeds texts: the hidden states of a model, pooled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from aifx.programs.program import Program
from aifx.specs import Params
from jax_kernels.dispatch import Choices

Pooling: TypeAlias = Literal["mean", "first", "last"]


def embedding_program(
    hidden: Callable[[Params, jax.Array, jax.Array], jax.Array],
    params: Params,
    pooling: Pooling,
    kernels: Choices | None = None,
) -> Program:
    """(params, tokens `[rows, seq]`, counts `[rows]`) -> `[rows, embed]`: hidden states of each row's text, pooled.

    A row's text is as many of its first tokens as its count. It compiles for each shape of tokens that it is called
    with.

    Args:
        hidden: of these arguments, `[rows, seq, embed]`.
        params: arrays, or their shapes and dtypes.
    """

    def embed(params: Params, tokens: jax.Array, counts: jax.Array) -> jax.Array:
        return pool(hidden(params, tokens, counts).astype(jnp.float32), counts, pooling)

    def struct(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    shapes = jax.ShapeDtypeStruct((1, 16), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return Program("embed", embed, (jax.tree.map(struct, params), *shapes), kernels=kernels)


def pool(hidden: jax.Array, counts: jax.Array, pooling: Pooling) -> jax.Array:
    """Vectors `[rows, embed]` of hidden states `[rows, seq, embed]`: the mean of a row's tokens, or one of them.

    Args:
        counts: `[rows]`; the first `counts` of a row's places are its tokens, the others are padding.
    """
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return jnp.take_along_axis(hidden, (counts - 1)[:, None, None], axis=1)[:, 0]
    is_token = jnp.arange(hidden.shape[1]) < counts[:, None]
    return jnp.sum(jnp.where(is_token[..., None], hidden, 0), axis=1) / counts[:, None]
