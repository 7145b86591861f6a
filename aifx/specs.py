"""Arrays described before they exist: what initialization, sharding, checkpoints and counts all read."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Initializer: TypeAlias = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]
Params: TypeAlias = dict[str, Any]  # nested dicts, jax.Array leaves
Specs: TypeAlias = dict[str, Any]  # the same nesting, ArraySpec leaves

Dimensions: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of an array that others are multiplied by: those that the product reduces, and those that it produces."""

LAYERS = "layers"
"""The node of a tree that holds a repeated block: `{"0": ..., "1": ...}` when unrolled, and on disk always;
arrays with a leading `layers` axis when scanned."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a model.

    Attributes:
        shape: its dimensions.
        axes: the logical name of each ("embed", "heads", "kv_heads", "head_dim", "mlp", "vocab", "layers"), None for
            one that is never sharded.
        init: makes its first value from (key, shape, dtype).
        kind: weight takes gradients, frozen does not, buffer changes without them.
        matrix: dimensions that (reduce, produce) when the array is used as a matrix, None for vectors, norms and
            embeddings: what Muon orthogonalizes.
        product: the same for a table that the last projection multiplies by, which Muon does not orthogonalize.
        decay: whether weight decay shrinks it: matrices and embeddings as in GPT-2, not norms and biases.
        is_exact: whether it keeps its type if the computation has another.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: DTypeLike = jnp.float32
    kind: Literal["weight", "frozen", "buffer"] = "weight"
    matrix: Dimensions | None = None
    product: Dimensions | None = None
    decay: bool = False
    is_exact: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"shape {self.shape} has {len(self.shape)} dimensions, axes {self.axes} name {len(self.axes)}"
            )

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """`[..., inputs, outputs]` of an array with a `matrix`, after leading dimensions such as layers."""
        assert self.matrix is not None
        inputs, outputs = (math.prod(self.shape[i] for i in axes) for axes in self.matrix)
        return (*self.shape[: min(self.matrix[0])], inputs, outputs)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


def is_spec(node: Any) -> bool:
    return isinstance(node, ArraySpec)


def map_specs(fn: Callable[[ArraySpec], Any], specs: Specs) -> Any:
    """The tree with `fn(spec)` in place of each spec."""
    return jax.tree.map(fn, specs, is_leaf=is_spec)


def select(tree: Any, specs: Specs | ArraySpec, is_selected: Callable[[ArraySpec], bool]) -> Any:
    """The part of `tree` (as the specs are) whose spec is selected, as nested dicts without empty ones."""
    if isinstance(specs, ArraySpec):
        return tree if is_selected(specs) else None
    parts = {name: select(tree[name], spec, is_selected) for name, spec in specs.items()}
    return {name: part for name, part in parts.items() if part is not None} or None


def split_frozen(tree: Any, specs: Specs) -> tuple[Any, Any]:
    """Weights and buffers of a tree (as the specs are), and its frozen arrays. `merge_frozen` joins them again."""
    trained = select(tree, specs, lambda spec: spec.kind != "frozen")
    return trained or {}, select(tree, specs, lambda spec: spec.kind == "frozen") or {}


def merge_frozen(params: Params, frozen: Params) -> Params:
    """The tree that `split_frozen` split."""
    merged = dict(params)
    for name, node in frozen.items():
        merged[name] = merge_frozen(merged[name], node) if isinstance(merged.get(name), dict) else node
    return merged


def count_parameters(specs: Specs) -> int:
    """Weights and frozen arrays, in elements; buffers are not parameters."""
    return sum(s.size for s in jax.tree.leaves(specs, is_leaf=is_spec) if s.kind != "buffer")


def init_params(specs: Specs, key: jax.Array) -> Params:
    """First values. Each array's key comes from its own path, so that adding an array changes no other, and a scanned
    layer starts as the unrolled one of the same name does.

    Arrays that are made alike are made together: the layers of a model compile as one does.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    parts = [array_names([str(p.key) for p in path], spec) for path, spec in leaves]
    keys = _named_keys([name for names, _ in parts for name in names], key)

    alike: dict[tuple[Any, ...], list[str]] = {}
    for (own, shape), (_, spec) in zip(parts, leaves, strict=True):
        alike.setdefault((spec.init, shape, jnp.dtype(spec.dtype)), []).extend(own)
    made: dict[str, jax.Array] = {}
    for (init, shape, dtype), group in alike.items():
        first = functools.partial(_first_value, init, shape, dtype)
        # A loop, not vmap: XLA would fuse the whole draw into each array's slice of it, and compile it as often.
        made |= zip(group, jax.lax.map(first, jnp.stack([keys[name] for name in group])), strict=True)

    arrays = [made[own[0]] if len(shape) == len(spec.shape) else jnp.stack([made[name] for name in own])
              for (own, shape), (_, spec) in zip(parts, leaves, strict=True)]  # fmt: skip
    return jax.tree_util.tree_unflatten(structure, arrays)  # type: ignore[no-any-return]


def _first_value(init: Initializer, shape: tuple[int, ...], dtype: jnp.dtype[Any], key: jax.Array) -> jax.Array:
    """Narrow numbers are drawn as float32 and rounded: their own types draw few values, and cut the tails."""
    return init(key, shape, wide_dtype(dtype)).astype(dtype)


def wide_dtype(dtype: DTypeLike) -> jnp.dtype[Any]:
    """Float32 for narrower floating-point numbers, otherwise the same."""
    dtype = jnp.dtype(dtype)
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def widened(tree: Any) -> Any:
    """Arrays, or their shapes, of floating-point numbers narrower than float32 as float32; the others as they are."""

    def wide(x: Any) -> Any:
        return (
            x.update(dtype=wide_dtype(x.dtype))
            if isinstance(x, jax.ShapeDtypeStruct)
            else x.astype(wide_dtype(x.dtype))
        )

    return jax.tree.map(wide, tree)


def with_weight_dtype(specs: Specs, dtype: DTypeLike) -> Specs:
    """The specs with the weights that are float32 as another type."""

    def changed(spec: ArraySpec) -> ArraySpec:
        return replace(spec, dtype=dtype) if spec.kind == "weight" and spec.dtype == jnp.float32 else spec

    return map_specs(changed, specs)  # type: ignore[no-any-return]


def with_frozen_dtype(specs: Specs, dtype: DTypeLike) -> Specs:
    """The specs with the frozen arrays that are float32 as another type, unless they are exact."""

    def changed(spec: ArraySpec) -> ArraySpec:
        is_free = spec.kind == "frozen" and spec.dtype == jnp.float32 and not spec.is_exact
        return replace(spec, dtype=dtype) if is_free else spec

    return map_specs(changed, specs)  # type: ignore[no-any-return]


def array_keys(specs: Specs, key: jax.Array) -> list[jax.Array]:
    """A key for each array, in the order of the tree, from its path; of a stack of layers, one for each `[layers]`."""
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
    parts = [array_names([str(p.key) for p in path], spec) for path, spec in leaves]
    keys = _named_keys([name for names, _ in parts for name in names], key)
    return [
        keys[names[0]] if len(shape) == len(spec.shape) else jnp.stack([keys[name] for name in names])
        for (names, shape), (_, spec) in zip(parts, leaves, strict=True)
    ]


def _named_keys(names: list[str], key: jax.Array) -> dict[str, jax.Array]:
    if not names:
        return {}
    crcs = jnp.array([zlib.crc32(name.encode()) for name in names], jnp.uint32)
    return dict(zip(names, jax.vmap(lambda crc: jax.random.fold_in(key, crc))(crcs), strict=True))


def array_names(names: list[str], spec: ArraySpec) -> tuple[list[str], tuple[int, ...]]:
    """Names and shape of an array's layers if it is a stack of them, otherwise its own. `names`: its path."""
    if LAYERS not in names or spec.axes[:1] != (LAYERS,):
        return ["/".join(names)], spec.shape
    at = names.index(LAYERS) + 1
    return ["/".join([*names[:at], str(i), *names[at:]]) for i in range(spec.shape[0])], spec.shape[1:]


def stack_layer_specs(layer: Specs, num_layers: int) -> Specs:
    """The specs of `num_layers` equal layers as one stacked layer."""

    def stack(s: ArraySpec) -> ArraySpec:
        matrix = None if s.matrix is None else (tuple(a + 1 for a in s.matrix[0]), tuple(a + 1 for a in s.matrix[1]))
        return replace(s, shape=(num_layers, *s.shape), axes=(LAYERS, *s.axes), matrix=matrix)

    return map_specs(stack, layer)  # type: ignore[no-any-return]


def is_stacked(layers: Mapping[str, Any]) -> bool:
    """Whether a `layers` node holds stacked arrays rather than a layer under each number."""
    return not all(k.isdigit() for k in layers)
