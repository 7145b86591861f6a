"""Stable names for the arrays of any tree: what a checkpoint knows them by, whatever classes held them.

A name is the path from the root, parts joined by "/": a dictionary's key, a field of a NamedTuple or dataclass, an
index of a tuple or list. `opt_state/0/mu/layers/3/attention/query`. What holds no array (None, `optax.EmptyState`,
`optax.MaskedNode`) has no name, and comes back from the tree that `from_named` is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

Tree: TypeAlias = Any
Named: TypeAlias = dict[str, Any]  # nested dicts, array leaves


def flat_names(tree: Tree) -> dict[str, Any]:
    """Leaves by name, in the tree's order. Raises ValueError when two leaves would share a name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {path_name(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two arrays of the tree have the same name")
    return named


def to_named(tree: Tree) -> Named:
    """The tree as nested dictionaries with the names of its parts as keys."""
    return nest(flat_names(tree))


def from_named(named: Mapping[str, Any], like: Tree) -> Tree:
    """The leaves of `named` in the structure of `like`. Raises KeyError, with the name, for one that is not there."""
    flat = flat_names(named)
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree_util.tree_unflatten(structure, [flat[path_name(path)] for path, _ in paths])


def nest(flat: Mapping[str, Any]) -> Named:
    """Nested dictionaries from leaves by name. Raises ValueError where a leaf's name is also a folder's."""
    root: Named = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name!r} lies below an array")
        if last in node:
            raise ValueError(f"{name!r} names two things")
        node[last] = leaf
    return root


def path_name(path: tuple[Any, ...]) -> str:
    parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
    for part in parts:
        if not part or "/" in part:
            raise ValueError(f"{part!r} cannot be part of an array's name")
    return "/".join(parts)
