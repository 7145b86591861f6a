"""Matrices of a trained model as int8 or fp8 numbers with a scale for each of their outputs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax

from aifx.config.sections import Quantization
from aifx.specs import ArraySpec, Params, Specs, is_spec
from jax_kernels._ops.quantized_matmul import quantize


class QuantizedMatrix(NamedTuple):
    """A matrix `[..., inputs, outputs]` as small numbers, and the scale of each column `[..., 1, outputs]`, float32."""

    values: jax.Array
    scale: jax.Array


class FrozenMatrix(QuantizedMatrix):
    """A quantized matrix beside which adapters are trained: what it multiplies is not rounded.

    So its error is that of the weights alone, on every mesh.
    """


@partial(jax.jit, static_argnames=("specs", "quantization"))
def _quantized(leaves: list[jax.Array], specs: tuple[ArraySpec, ...], quantization: str) -> list[Any]:
    def of(spec: ArraySpec, array: jax.Array) -> jax.Array | QuantizedMatrix:
        if spec.matrix is None:
            return array
        inputs, outputs = (math.prod(spec.shape[axis] for axis in axes) for axes in spec.matrix)
        leading = spec.shape[: min(spec.matrix[0])]
        return QuantizedMatrix(*quantize(array.reshape(*leading, inputs, outputs), quantization, (None, 1)))

    return [of(spec, leaf) for spec, leaf in zip(specs, leaves, strict=True)]


def quantize_matrices(params: Params, specs: Specs, quantization: Quantization) -> Params:
    """`params` with a QuantizedMatrix in place of every matrix (`ArraySpec.matrix`); embeddings and vectors stay.

    What multiplies by a matrix takes either (`layers.linear`).
    """
    if quantization == "none":
        return params
    flat, structure = jax.tree.flatten(specs, is_leaf=is_spec)
    quantized: Params = jax.tree.unflatten(structure, _quantized(jax.tree.leaves(params), tuple(flat), quantization))
    return quantized
