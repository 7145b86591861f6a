"""Matrices of a trained model as int8 or fp8 numbers with a scale for each of their outputs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from aifx.config.sections import Quantization
from aifx.specs import ArraySpec, Params, Specs, is_spec
from jax_kernels._ops.quantized_matmul import dequantize, quantize
from jax_kernels.implementations import current_device


class QuantizedMatrix(NamedTuple):
    """A matrix `[..., inputs, outputs]` as small numbers, and the scale of each column `[..., 1, outputs]`, float32.

    A product rounds each row of activations to the type of the values too.
    """

    values: jax.Array
    scale: jax.Array


class Int8Table(NamedTuple):
    """A matrix as int8 `[..., outputs, inputs]`, and the scale of each row `[..., outputs]`, float32.

    What generation on a CPU reads, and on every device the frozen matrices beside which adapters are trained. The error
    of a product is that of the weights: on a CPU it keeps 15 bits of the activations, as two int8 terms
    (`two_term_product`), elsewhere all of them. XLA's CPU backend multiplies int8 fast in this orientation alone.
    """

    values: jax.Array
    scale: jax.Array


SomeMatrix: TypeAlias = jax.Array | QuantizedMatrix | Int8Table


@partial(jax.jit, static_argnames=("specs", "quantization", "on_cpu"))
def _quantized(leaves: list[jax.Array], specs: tuple[ArraySpec, ...], quantization: str, on_cpu: bool) -> list[Any]:
    def of(spec: ArraySpec, array: jax.Array) -> SomeMatrix:
        dimensions = spec.matrix or (spec.product if on_cpu else None)
        if dimensions is None:
            return array
        inputs, outputs = (math.prod(spec.shape[axis] for axis in axes) for axes in dimensions)
        is_table = min(dimensions[0]) > min(dimensions[1])
        leading = spec.shape[: min(*dimensions[0], *dimensions[1])]
        if not on_cpu:
            return QuantizedMatrix(*quantize(array.reshape(*leading, inputs, outputs), quantization, (None, 1)))
        table = array if is_table else array.reshape(*leading, inputs, outputs).swapaxes(-1, -2)
        values, scale = quantize(table, quantization, (1, None))
        return Int8Table(values, scale[..., 0])

    return [of(spec, leaf) for spec, leaf in zip(specs, leaves, strict=True)]


def quantize_matrices(params: Params, specs: Specs, quantization: Quantization) -> Params:
    """`params` with quantized matrices in place of every matrix (`ArraySpec.matrix`); embeddings and vectors stay.

    Int8 on a CPU also replaces the projection to the vocabulary (`ArraySpec.product`): left in float32, it would be
    half of what a small model reads for each token. `layers.linear` takes each kind.
    """
    if quantization == "none":
        return params
    flat, structure = jax.tree.flatten(specs, is_leaf=is_spec)
    on_cpu = quantization == "int8" and current_device().platform == "cpu"
    leaves = _quantized(jax.tree.leaves(params), tuple(flat), quantization, on_cpu)
    quantized: Params = jax.tree.unflatten(structure, leaves)
    return quantized


def two_term_product(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    """x `[rows, inputs]` times an Int8Table: `[rows, outputs]` in x's type.

    Each row becomes two of int8, `high + low / 254` times a scale of its own, so that the error is that of the weights.
    One row becomes two as well: XLA's CPU backend multiplies a single row of int8 by a loop, 20 times slower.
    """
    # A row's largest element is 127 units. `high` is each element in whole units, -127 to 127. What it rounds away is
    # at most half a unit, so `low` holds it in units of 1 / 254, again -127 to 127. Both are int8, their products with
    # the int8 weights are summed exactly in int32, and one product of twice as many rows computes both.
    wide = x.astype(jnp.float32)
    # At least the smallest number that divides without a flush to zero: so zeros are zeros, not 0 / 0.
    unit = jnp.maximum(jnp.max(jnp.abs(wide), axis=1, keepdims=True) / 127, jnp.finfo(jnp.float32).tiny)
    steps = wide / unit
    high = jnp.round(steps)
    low = jnp.round((steps - high) * 254)
    terms = jnp.concatenate([high, low]).astype(jnp.int8)
    sums = jax.lax.dot_general(terms, values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    of_high, of_low = jnp.split(sums.astype(jnp.float32), 2)
    return ((of_high + of_low / 254) * unit * scale).astype(x.dtype)


def lookup_rows(table: jax.Array | Int8Table, ids: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rows `ids` of a table `[vocab, embed]`, as `[*ids.shape, embed]`: in `dtype` if the table is quantized."""
    if isinstance(table, Int8Table):
        return (table.values[ids] * table.scale[ids][..., None]).astype(dtype)
    return table[ids]


def as_dense(table: jax.Array | Int8Table, dtype: DTypeLike) -> jax.Array:
    """A table `[..., outputs, inputs]`: itself, or if it is quantized, dequantized to `dtype`."""
    if isinstance(table, Int8Table):
        return dequantize(table.values, table.scale[..., None]).astype(dtype)
    return table


def concat_outputs(*weights: SomeMatrix) -> SomeMatrix:
    """Join matrices that have the same inputs: one matrix with the outputs of all."""
    tables = [weight for weight in weights if isinstance(weight, Int8Table)]
    if tables:
        values, scales = zip(*tables, strict=True)
        return Int8Table(jnp.concatenate(values, axis=-2), jnp.concatenate(scales, axis=-1))
    matrices = [weight for weight in weights if isinstance(weight, QuantizedMatrix)]
    if matrices:
        return QuantizedMatrix(*(jnp.concatenate(parts, axis=-1) for parts in zip(*matrices, strict=True)))
    return jnp.concatenate([weight for weight in weights if isinstance(weight, jax.Array)], axis=-1)
