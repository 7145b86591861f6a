"""Numbers that the processes of a job add up in step with the program, so that no host waits for them alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from aifx.parallel.layout import Layout

Sums: TypeAlias = "np.ndarray[Any, Any] | jax.Array"
"""Sums as int32. Those of one process are a NumPy array, known at once."""


class SumReducer:
    """Adds up integers over the processes whose devices a layout has. All of them make the same calls."""

    def __init__(self, layout: Layout, count: int) -> None:
        self._count = count
        self._devices = None if isinstance(layout.mesh, AbstractMesh) else layout.mesh
        self._is_one_process = self._devices is None or not self._devices.is_multi_process

    def __call__(self, values: Sequence[int]) -> Sums:
        """The sum of each of the `count` values, which is not waited for."""
        own = np.array(values, np.int32)
        if self._is_one_process:
            return own
        rows: dict[Any, np.ndarray[Any, Any]] = {
            d: np.zeros((1, self._count), np.int32) for d in self._sharding.addressable_devices
        }
        first = min(rows, key=lambda device: device.id)
        rows[first] = own[None]
        shards = [jax.device_put(row, device) for device, row in rows.items()]
        assert self._devices is not None
        shape = self._devices.size, self._count
        summed: jax.Array = self._sum(jax.make_array_from_single_device_arrays(shape, self._sharding, shards))
        return summed

    @functools.cached_property
    def _sharding(self) -> NamedSharding:
        assert self._devices is not None
        return NamedSharding(self._devices, PartitionSpec(self._devices.axis_names))

    @functools.cached_property
    def _sum(self) -> Callable[[jax.Array], jax.Array]:
        assert self._devices is not None
        replicated = NamedSharding(self._devices, PartitionSpec())
        return jax.jit(lambda rows: jnp.sum(rows, axis=0), out_shardings=replicated)
