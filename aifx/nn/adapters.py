"""Specs of a model whose own arrays are frozen, with adapters (`[lora]`) beside its matrices, and quantized if asked.

A matrix becomes a node of the tree: `base`, `lora_a` and `lora_b`, where `base` may be an `Int8Table`: `int8`, with the
outputs before the inputs, and `int8_scale`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from aifx.config.sections import LoraSection
from aifx.nn import initializers, layers
from aifx.nn.lora import LoraMatrix
from aifx.nn.quantized import Int8Table
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.specs import ArraySpec, Params, Specs
from jax_kernels._ops.quantized_matmul import quantize

BASE, A, B = "base", "lora_a", "lora_b"
INT8, INT8_SCALE = "int8", "int8_scale"


def target_names(specs: Specs, groups: Collection[str]) -> set[str]:
    """The names that `lora.targets` may have: the groups of matrices, and each matrix in one of them."""
    found: set[str] = set()
    for path, spec in _leaves(specs):
        if spec.matrix is not None and (own := [name for name in path if name in groups]):
            found |= {*own, path[-1]}
    return found


def adapted_specs(specs: Specs, section: LoraSection, groups: Collection[str], *, is_quantized: bool) -> Specs:
    """All arrays of `specs` frozen, with adapters for the matrices in `groups` that `lora.targets` names.

    Args:
        is_quantized: whether the matrices in `groups` are int8 numbers with a scale for each output.
    """

    def adapted(node: Specs | ArraySpec, path: tuple[str, ...]) -> Specs | ArraySpec:
        if not isinstance(node, ArraySpec):
            return {name: adapted(child, (*path, name)) for name, child in node.items()}
        frozen = replace(node, kind="frozen")
        if node.matrix is None or not set(path) & set(groups):
            return frozen
        base = _quantized_specs(frozen) if is_quantized else frozen
        return {BASE: base, **_adapter_specs(node, section.rank)} if set(path) & set(section.targets) else base

    found = adapted(specs, ())
    assert isinstance(found, dict)
    return found


def _leaves(specs: Specs | ArraySpec, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ArraySpec]]:
    if isinstance(specs, ArraySpec):
        yield path, specs
        return
    for name, node in specs.items():
        yield from _leaves(node, (*path, name))


def _adapter_specs(spec: ArraySpec, rank: int) -> Specs:
    """Specs of `a` and `b`, initialized as in PEFT: `a` uniform within 1 / sqrt(inputs), `b` zero."""
    assert spec.matrix is not None
    inputs, outputs = spec.matrix
    lead = min(inputs)  # dimensions before it: layers
    bound = math.prod(spec.shape[i] for i in inputs) ** -0.5

    def of(before: Sequence[int], after: Sequence[int], init: Any) -> ArraySpec:
        def around(values: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
            return (*values[:lead], *(values[i] for i in before), own, *(values[i] for i in after))

        first = lead + max(len(before), 1)  # of the produced dimensions
        shape = around(spec.shape, rank)
        matrix = tuple(range(lead, first)), tuple(range(first, len(shape)))
        return ArraySpec(shape, around(spec.axes, None), init, matrix=matrix, decay=True)

    return {A: of(inputs, (), initializers.uniform(bound)), B: of((), outputs, initializers.zeros)}


def _quantized_specs(spec: ArraySpec) -> Specs:
    assert spec.matrix is not None
    inputs, outputs = spec.matrix
    order, lead = _outputs_first(spec), min(inputs)
    shape, axes = tuple(spec.shape[i] for i in order), tuple(spec.axes[i] for i in order)
    end = lead + len(outputs)
    matrix = tuple(range(lead, end)), tuple(range(end, len(order)))
    values = replace(spec, shape=shape, axes=axes, init=initializers.int8, dtype=jnp.int8, matrix=matrix)
    # The initial values matter if there is no base run, as in `aifx bench train`.
    size = initializers.constant(0.01 * math.prod(shape[end:]) ** -0.5)
    scale = replace(spec, shape=shape[:end], axes=axes[:end], init=size, dtype=jnp.float32, matrix=None, is_exact=True)
    return {INT8: values, INT8_SCALE: scale}


def _outputs_first(spec: ArraySpec) -> tuple[int, ...]:
    """The dimensions of a matrix in the order of its `Int8Table`: layers, outputs, inputs."""
    assert spec.matrix is not None
    inputs, outputs = spec.matrix
    return (*range(min(inputs)), *outputs, *inputs)


def quantize_array(array: jax.Array, spec: ArraySpec) -> dict[str, jax.Array]:
    """A matrix of this spec as int8 numbers, its outputs first, and their float32 scales, one for each output."""
    values, scale = quantize(array.reshape(spec.matrix_shape).swapaxes(-1, -2), "int8", (1, None))
    specs = _quantized_specs(spec)
    return {INT8: values.reshape(specs[INT8].shape), INT8_SCALE: scale.reshape(specs[INT8_SCALE].shape)}


def with_adapters(params: Params, specs: Specs, section: LoraSection, layout: Layout) -> Params:
    """The params of `adapted_specs` as layers take them: each adapted matrix is a `LoraMatrix`."""

    def taken(node: Any, spec: Any) -> Any:
        if isinstance(spec, ArraySpec):
            # Reshaped inside a loop over layers, a copy of each matrix would be kept for the backward pass.
            return node.reshape(spec.matrix_shape) if spec.matrix and layout.num_devices == 1 else node
        if INT8 in spec:
            return Int8Table(taken(node[INT8], spec[INT8]), node[INT8_SCALE])
        if A not in spec:
            return {name: taken(node[name], child) for name, child in spec.items()}
        inputs = layout.stored(spec[A], layout.computation)[:-1]
        input_axes = tuple(axis for axes in inputs for axis in axes)
        scale = section.alpha / section.rank
        return LoraMatrix(taken(node[BASE], spec[BASE]), node[A], node[B], scale, section.dropout, input_axes)

    found: Params = taken(params, specs)
    return found


def with_adapter_dropout(params: Params, ctx: ForwardContext, number: Any, shape: tuple[int, ...]) -> Params:
    """The params of layer `number` with the dropout of its adapters, in training.

    Args:
        shape: `(rows, seq)` of the tokens that the layer's products read.
    """
    if not ctx.training:
        return params
    rows, seq = shape

    def bound(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, LoraMatrix) or not leaf.dropout:
            return leaf
        place, layout = zlib.crc32(jax.tree_util.keystr(path).encode()), ctx.layout
        own = layers.in_layer(ctx, number)

        def drop(x: jax.Array) -> jax.Array:
            part = layout.index(leaf.input_axes) if leaf.input_axes else 0
            vectors = layout.seq_positions(seq) * layout.size(leaf.input_axes) + part
            return layers.dropout(x.reshape(rows, seq, -1), leaf.dropout, own, place, vectors).reshape(x.shape)

        return replace(leaf, drop=drop)

    found: Params = jax.tree_util.tree_map_with_path(bound, params, is_leaf=lambda leaf: isinstance(leaf, LoraMatrix))
    return found


def merged_arrays(params: Params, specs: Specs, plain: Specs, section: LoraSection) -> Params:
    """`params` of `adapted_specs` with adapters merged into their matrices: arrays of the specs `plain`."""

    def merged(node: Any, spec: Any, own: Any) -> Any:
        if not isinstance(own, ArraySpec):
            return {name: merged(node[name], spec[name], child) for name, child in own.items()}
        if isinstance(spec, ArraySpec):
            return node.astype(own.dtype)
        return merged_matrix(node, own, section)

    found: Params = merged(params, specs, plain)
    return found


def merged_matrix(node: Params, spec: ArraySpec, section: LoraSection) -> jax.Array:
    """Merge a node of `adapted_specs` into one matrix of this spec: base + alpha / rank * a @ b."""
    base = _dequantized(node.get(BASE, node), spec)
    if A in node:
        assert spec.matrix is not None
        lead = min(spec.matrix[0])
        a, b = (node[name].astype(jnp.float32) for name in (A, B))
        a = a.reshape(*a.shape[:lead], -1, section.rank)
        b = b.reshape(*b.shape[: lead + 1], -1)
        base = base + section.alpha / section.rank * (a @ b).reshape(spec.shape)
    return base.astype(spec.dtype)


def _dequantized(node: Any, spec: ArraySpec) -> jax.Array:
    if not isinstance(node, dict):
        wide: jax.Array = node.astype(jnp.float32)
        return wide
    order, scale = _outputs_first(spec), node[INT8_SCALE]
    found: jax.Array = node[INT8].astype(jnp.float32) * jnp.expand_dims(scale, range(scale.ndim, len(order)))
    return found.transpose(sorted(range(len(order)), key=order.__getitem__))
