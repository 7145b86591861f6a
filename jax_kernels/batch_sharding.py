"""A call of an op among several devices, each of which computes its share of the rows.

The compiler cannot divide a Pallas kernel, and divides a loop over rows badly: each device would take every turn. Here
each device runs the whole program of its own share instead, and nothing is left to divide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec


@dataclass(frozen=True)
class Division:
    """The devices along `axis` of `mesh`, among which rows are shared out."""

    mesh: Mesh | AbstractMesh
    axis: str

    @property
    def count(self) -> int:
        return int(self.mesh.shape[self.axis])


@dataclass(frozen=True)
class ShardPlan:
    """How a call is shared out.

    Attributes:
        call: of one device's share.
        operands: the axis along which each is cut; None for what every device has whole.
        results: the axis along which each is joined; None for one whose shares are added up.
    """

    call: Any
    operands: tuple[int | None, ...]
    results: tuple[int | None, ...]


def free_axes() -> list[str] | None:
    """Mesh axes with several devices that a `jax.shard_map` around leaves to the compiler; None if there is no map."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.manual_axes:
        return None
    return [name for name in mesh.axis_names if name not in mesh.manual_axes and mesh.shape[name] > 1]


def varying_axes(operands: Sequence[Any]) -> frozenset[str]:
    """Mesh axes over which an operand varies, inside a `jax.shard_map(check_vma=True)`; elsewhere none."""
    none: frozenset[str] = frozenset()
    return none.union(*(jax.typeof(x).manual_axis_type.varying for x in operands if x is not None))


def varying(operands: Sequence[Any], axes: frozenset[str]) -> list[Any]:
    """The operands, all of them typed as varying over the axes. The gradient of one that did not vary is summed."""

    def cast(x: Any) -> Any:
        missing = () if x is None else tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return [cast(x) for x in operands]


def divided(program: Callable[..., Any], division: Division, rows: ShardPlan, operands: Sequence[Any]) -> Any:
    """The results of `program`, which takes one device's share of the operands and gives its share of the results.

    An operand may be None, a result too. The gradient of an operand that every device has is added up over them.
    """
    single: list[bool] = []

    def share(*given: Any) -> tuple[Any, ...]:
        results = program(*given)
        single.append(not isinstance(results, tuple))
        each = results if isinstance(results, tuple) else (results,)
        shares = zip(each, rows.results, strict=True)
        return tuple(x[None] if axis is None and x is not None else x for x, axis in shares)

    in_specs = tuple(_spec(division, axis) for axis in rows.operands)
    out_specs = tuple(_spec(division, axis or 0) for axis in rows.results)
    # Within a map over other axes, this one is over those that are left.
    axes = set(division.mesh.axis_names) - set(jax.sharding.get_abstract_mesh().manual_axes)
    spread = jax.shard_map(
        share, mesh=division.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False
    )
    joined = zip(spread(*operands), rows.results, strict=True)
    results = tuple(jnp.sum(x, axis=0) if axis is None and x is not None else x for x, axis in joined)
    return results[0] if single[0] else results


def _spec(division: Division, axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, division.axis)
