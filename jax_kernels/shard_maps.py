"""What a call of an op knows of the `jax.shard_map` around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax


def free_axes() -> list[str]:
    """Mesh axes with several devices that a `jax.shard_map` around leaves to the compiler; none if there is no map."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.manual_axes:
        return []
    return [name for name in mesh.axis_names if name not in mesh.manual_axes and mesh.shape[name] > 1]


def varying_axes(operands: Sequence[Any]) -> frozenset[str]:
    """Mesh axes over which an operand varies, inside a `jax.shard_map(check_vma=True)`; elsewhere none."""
    none: frozenset[str] = frozenset()
    return none.union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(operands)))


def varying(operands: Sequence[Any], axes: frozenset[str]) -> list[Any]:
    """The operands, all of them typed as varying over the axes. The gradient of one that did not vary is summed."""

    def cast(x: Any) -> Any:
        missing = tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, list(operands))  # type: ignore[no-any-return]
