"""The mesh over this process's devices, and what lies where on it.

Logical axes of an array ("embed", "mlp", "vocab") are mapped to axes of the mesh by rules; today's rules shard nothing
but the batch, so that every device holds the whole state and a part of each batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aifx.core.errors import ConfigError
from aifx.data.base import Batch
from aifx.specs import ArraySpec, Specs, map_specs

DATA_AXIS = "data"

Rules: TypeAlias = Mapping[str, str | None]
"""Logical axis -> mesh axis; a logical axis that is absent is not sharded."""

RULES: Rules = {"batch": DATA_AXIS}


def make_mesh(devices: int | Literal["all"] = "all") -> Mesh:
    """The first `devices` local devices along one "data" axis. Raises ConfigError when there are fewer."""
    local = jax.local_devices()
    if devices != "all" and devices > len(local):
        raise ConfigError(
            f"train.devices = {devices}, and this machine has {len(local)}",
            f"JAX finds {', '.join(sorted({d.device_kind for d in local}))}",
            f"aifx train --set train.devices={len(local)}",
        )
    return Mesh(np.array(local if devices == "all" else local[:devices]), (DATA_AXIS,))


def check_batch_fits(global_batch_size: int, gradient_accumulation: int, mesh: Mesh) -> None:
    """Raises ConfigError unless each device gets the same rows of each micro-batch."""
    rows = global_batch_size // gradient_accumulation
    num_devices = mesh.shape[DATA_AXIS]
    if rows % num_devices:
        step = num_devices * gradient_accumulation
        nearest = max(round(global_batch_size / step), 1) * step
        micro = f" in {gradient_accumulation} micro-batches" if gradient_accumulation > 1 else ""
        raise ConfigError(
            f"train.global_batch_size = {global_batch_size}{micro} cannot be divided among {num_devices} devices",
            f"each device takes the same number of rows: {rows} / {num_devices} is not whole",
            f"aifx train --set train.global_batch_size={nearest}    "
            f"(or --set train.devices={_largest_divisor(rows, num_devices)})",
        )


def param_shardings(specs: Specs, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A NamedSharding for each spec, in the specs' tree."""

    def sharding(spec: ArraySpec) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(rules.get(axis) if axis else None for axis in spec.axes)))

    return map_specs(sharding, specs)


def opt_state_shardings(opt_state: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer's state: what mirrors a parameter lies as the parameter does, the rest everywhere.

    Args:
        opt_state: (abstract) state, in which a moment's path ends with its parameter's path.
        shardings: of the parameters.
    """
    by_path = {_names(path): s for path, s in jax.tree_util.tree_leaves_with_path(shardings)}

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            found = by_path.get(names[start:])
            if isinstance(found, NamedSharding) and len(found.spec) == leaf.ndim:
                return found
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the "data" axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def place_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """The batch on the devices, its rows divided among them where that goes evenly, else whole on each.

    Returns before the copy is done.
    """
    rows = {len(array) for array in batch.values()}
    even = all(n % mesh.shape[DATA_AXIS] == 0 for n in rows)
    placed: dict[str, jax.Array] = jax.device_put(batch, batch_sharding(mesh) if even else replicated(mesh))
    return placed


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def _largest_divisor(number: int, at_most: int) -> int:
    return max(d for d in range(1, at_most + 1) if number % d == 0)
