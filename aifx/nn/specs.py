"""Arrays described before they exist: what initialization, sharding, checkpoints and counts all read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Initializer: TypeAlias = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]
Params: TypeAlias = dict[str, Any]  # nested dicts, jax.Array leaves
Specs: TypeAlias = dict[str, Any]  # the same nesting, ArraySpec leaves

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
        decay: whether weight decay shrinks it: matrices and embeddings as in GPT-2, not norms and biases.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: DTypeLike = jnp.float32
    kind: Literal["weight", "frozen", "buffer"] = "weight"
    matrix: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    decay: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"shape {self.shape} has {len(self.shape)} dimensions, axes {self.axes} name {len(self.axes)}"
            )

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)  # type: ignore[no-untyped-call]


def is_spec(node: Any) -> bool:
    return isinstance(node, ArraySpec)


def map_specs(fn: Callable[[ArraySpec], Any], specs: Specs) -> Any:
    """The tree with `fn(spec)` in place of each spec."""
    return jax.tree.map(fn, specs, is_leaf=is_spec)


def count_parameters(specs: Specs) -> int:
    """Weights and frozen arrays, in elements; buffers are not parameters."""
    return sum(s.size for s in jax.tree.leaves(specs, is_leaf=is_spec) if s.kind != "buffer")


def init_params(specs: Specs, key: jax.Array) -> Params:
    """First values. Each array's key comes from its own path, so that adding an array changes no other, and a scanned
    layer starts as the unrolled one of the same name does."""

    def init(path: tuple[Any, ...], spec: ArraySpec) -> jax.Array:
        names = [str(p.key) for p in path]
        if LAYERS not in names or spec.axes[:1] != (LAYERS,):
            return spec.init(_key_of(key, names), spec.shape, spec.dtype)
        at = names.index(LAYERS) + 1
        layers = [
            spec.init(_key_of(key, [*names[:at], str(i), *names[at:]]), spec.shape[1:], spec.dtype)
            for i in range(spec.shape[0])
        ]
        return jnp.stack(layers)

    return jax.tree_util.tree_map_with_path(init, specs, is_leaf=is_spec)  # type: ignore[no-any-return]


def _key_of(key: jax.Array, names: list[str]) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32("/".join(names).encode()))


def stack_layer_specs(layer: Specs, num_layers: int) -> Specs:
    """The specs of `num_layers` equal layers as one stacked layer."""

    def stack(s: ArraySpec) -> ArraySpec:
        matrix = None if s.matrix is None else (tuple(a + 1 for a in s.matrix[0]), tuple(a + 1 for a in s.matrix[1]))
        return ArraySpec((num_layers, *s.shape), (LAYERS, *s.axes), s.init, s.dtype, s.kind, matrix, s.decay)

    return map_specs(stack, layer)  # type: ignore[no-any-return]


def is_stacked(layers: Mapping[str, Any]) -> bool:
    """Whether a `layers` node holds stacked arrays rather than a layer under each number."""
    return not all(k.isdigit() for k in layers)
