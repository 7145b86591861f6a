"""On which devices a program runs, and how arrays are divided among them: a description that needs no device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from aifx.config.sections import MeshSection
from aifx.core.errors import ConfigError
from aifx.data.base import Batch
from aifx.specs import Specs, map_specs

DATA_AXIS = "data"

Rules: TypeAlias = Mapping[str, str | tuple[str, ...] | None]
"""Logical axis -> mesh axes; a logical axis that is absent is not divided."""


@dataclass(frozen=True)
class Layout:
    """A mesh, and the rules by which arrays are divided over it.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        device_kind: of every device, as JAX names it.
        parameters: rules for parameters and optimizer state. Today every device holds all of them.
        computation: rules for batches and activations.
    """

    mesh: Mesh | AbstractMesh
    platform: str
    device_kind: str
    parameters: Rules = field(default_factory=dict)
    computation: Rules = field(default_factory=lambda: {"batch": DATA_AXIS})

    @property
    def num_devices(self) -> int:
        return int(self.mesh.size)

    @property
    def devices(self) -> list[jax.Device]:
        """The devices, in the order of the mesh. Raises ValueError for a layout without devices."""
        if isinstance(self.mesh, AbstractMesh):
            raise ValueError("this layout describes devices that are not here")
        return list(self.mesh.devices.flat)

    def sharding(self, axes: tuple[str | None, ...], rules: Rules) -> NamedSharding:
        """Of an array with these logical axes."""
        return NamedSharding(self.mesh, PartitionSpec(*(rules.get(axis) if axis else None for axis in axes)))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def of_batch(self, rows: int) -> NamedSharding:
        """Of a batch's arrays `[rows, ...]`: divided by rows if these divide evenly, otherwise replicated."""
        is_even = rows % self.mesh.shape[DATA_AXIS] == 0
        return self.sharding(("batch",), self.computation) if is_even else self.replicated

    @property
    def micro_rows(self) -> NamedSharding:
        """Of micro-batches `[micro-batches, rows, ...]`."""
        return self.sharding((None, "batch"), self.computation)

    def of_params(self, specs: Specs) -> Any:
        """A sharding for each spec, in the specs' tree."""
        return map_specs(lambda spec: self.sharding(spec.axes, self.parameters), specs)

    def of_optimizer(self, opt_state: Any, params: Any) -> Any:
        """Shardings of an optimizer's state: what mirrors a parameter is divided as it is, the rest is replicated.

        Args:
            opt_state: (abstract) state, in which a moment's path ends with its parameter's path.
            params: shardings of the parameters.
        """
        by_path = {_names(path): s for path, s in jax.tree_util.tree_leaves_with_path(params)}

        def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            names = _names(path)
            for start in range(len(names)):
                found = by_path.get(names[start:])
                if isinstance(found, NamedSharding) and len(found.spec) == leaf.ndim:
                    return found
            return self.replicated

        return jax.tree_util.tree_map_with_path(sharding, opt_state)

    def local_rows(self, rows: int) -> slice:
        """Of a batch of so many rows, those that this process reads: the rows of its devices, and any between them."""
        parts = self.of_batch(rows).addressable_devices_indices_map((rows,)).values()
        bounds = [part[0].indices(rows)[:2] for part in parts if part is not None]
        return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))

    def own_rows(self, rows: int) -> list[slice]:
        """Of `local_rows`, counted from the first of them, those that are counted here. Each row is counted once."""
        first: dict[tuple[int, int], jax.Device] = {}
        for device, part in self.of_batch(rows).devices_indices_map((rows,)).items():
            if part is not None:
                first.setdefault(part[0].indices(rows)[:2], device)
        here, begin = jax.process_index(), self.local_rows(rows).start
        return [slice(a - begin, b - begin) for (a, b), device in sorted(first.items()) if device.process_index == here]

    def place(self, batch: Batch, rows: int | None = None) -> dict[str, jax.Array]:
        """The batch on the devices. Returns before the copy is done.

        Args:
            batch: the `local_rows` of a batch of `rows` rows; by default all of it.
        """
        rows = len(next(iter(batch.values()))) if rows is None else rows
        sharding, begin = self.of_batch(rows), self.local_rows(rows).start

        def array(values: np.ndarray[Any, Any]) -> jax.Array:
            def part(index: Any) -> np.ndarray[Any, Any]:
                start, stop, _ = index[0].indices(rows)
                return values[start - begin : stop - begin]

            return jax.make_array_from_callback((rows, *values.shape[1:]), sharding, part)

        return {name: array(values) for name, values in batch.items()}

    def check_batch(self, global_batch_size: int, gradient_accumulation: int) -> None:
        """Raises ConfigError unless each device gets the same rows of each micro-batch."""
        rows = global_batch_size // gradient_accumulation
        num_devices = self.mesh.shape[DATA_AXIS]
        if rows % num_devices:
            step = num_devices * gradient_accumulation
            nearest = max(round(global_batch_size / step), 1) * step
            micro = f" in {gradient_accumulation} micro-batches" if gradient_accumulation > 1 else ""
            divisor = max(d for d in range(1, num_devices + 1) if rows % d == 0)
            raise ConfigError(
                f"train.global_batch_size = {global_batch_size}{micro} cannot be divided among {num_devices} devices",
                f"each device takes the same number of rows: {rows} / {num_devices} is not whole",
                f"--set train.global_batch_size={nearest}, or --set train.devices={divisor}",
            )


def local_layout(devices: int | Literal["all"] = "all", mesh: MeshSection | None = None) -> Layout:
    """The layout over the first `devices` devices of each process of the job, along one "data" axis.

    Raises ConfigError if there are fewer, or if the mesh has another size.
    """
    local = jax.local_devices()
    if devices != "all" and devices > len(local):
        raise ConfigError(
            f"train.devices = {devices}, and this machine has {len(local)}",
            f"JAX finds {', '.join(sorted({d.device_kind for d in local}))}",
            f"aifx train --set train.devices={len(local)}",
        )
    each = len(local) if devices == "all" else devices
    chosen = [device for index in range(jax.process_count()) for device in jax.local_devices(index)[:each]]
    if mesh is not None and mesh.data not in (-1, len(chosen)):
        raise ConfigError(
            f"mesh.data = {mesh.data}, and the run has {len(chosen)} devices",
            "its rows are divided among all of them",
            "aifx train --set mesh.data=-1",
        )
    return Layout(Mesh(np.array(chosen), (DATA_AXIS,)), chosen[0].platform, chosen[0].device_kind)


def abstract_layout(num_devices: int, platform: str, device_kind: str) -> Layout:
    """The layout of devices that are not here."""
    mesh = AbstractMesh((num_devices,), (DATA_AXIS,), axis_types=(AxisType.Auto,))
    return Layout(mesh, platform, device_kind)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
