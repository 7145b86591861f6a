"""Scanned and unrolled layers, one into the other: for params, optimizer states and their abstract shapes alike.

A `layers` node anywhere in a tree is turned, whatever stands around it (dicts, tuples, optax's NamedTuples).
Checkpoints hold the unrolled names always, so that the switch between the two is no part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aifx.specs import LAYERS, Specs, is_spec, is_stacked


def has_stacked_layers(specs: Specs) -> bool:
    """Whether a model scans its layers: a node that is only called `layers` is not taken for a stack."""
    return any(spec.axes[:1] == (LAYERS,) for spec in jax.tree.leaves(specs, is_leaf=is_spec))


def unstack_layers(tree: Any) -> Any:
    """The tree with each stacked `layers` node as `{"0": layer, "1": layer, ...}`; an unrolled one stays as it is."""
    depths: set[int] = set()
    _map_layers(lambda layers: depths.update(_depths(layers)), tree)
    if len(depths) > 1:
        raise ValueError(f"stacked layers of one tree differ in depth: {sorted(depths)}")

    def unstack(layers: dict[str, Any]) -> dict[str, Any]:
        if not is_stacked(layers) or not depths:
            return layers
        return {str(i): jax.tree.map(partial(_layer, i), layers) for i in range(max(depths))}

    return _map_layers(unstack, tree)


def stack_layers(tree: Any) -> Any:
    """The inverse of `unstack_layers`: each numbered `layers` node as one layer of arrays with a leading axis."""

    def stack(layers: dict[str, Any]) -> dict[str, Any]:
        if is_stacked(layers) or not layers:
            return layers
        stacked: dict[str, Any] = jax.tree.map(
            lambda *leaves: _stack(leaves), *(layers[str(i)] for i in range(len(layers)))
        )
        return stacked

    return _map_layers(stack, tree)


def _map_layers(fn: Callable[[dict[str, Any]], Any], tree: Any) -> Any:
    def has_layers(node: Any) -> bool:
        return isinstance(node, dict) and LAYERS in node

    def convert(node: Any) -> Any:
        if not has_layers(node):
            return node
        return {k: fn(v) if k == LAYERS else _map_layers(fn, v) for k, v in node.items()}

    return jax.tree.map(convert, tree, is_leaf=has_layers)


def _depths(layers: dict[str, Any]) -> set[int]:
    return {leaf.shape[0] for leaf in jax.tree.leaves(layers)} if is_stacked(layers) else set()


def _layer(i: int, leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf[i]
    return _struct(leaf.shape[1:], leaf, lambda axes: axes[1:])


def _stack(leaves: tuple[Any, ...]) -> Any:
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return _struct((len(leaves), *first.shape), first, lambda axes: (None, *axes))
    return np.stack(leaves) if isinstance(first, np.ndarray) else jnp.stack(leaves)


def _struct(
    shape: tuple[int, ...], like: jax.ShapeDtypeStruct, axes: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> Any:
    sharding = like.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*axes(tuple(sharding.spec))))
    return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding)
