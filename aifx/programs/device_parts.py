"""The parts of a program's arguments that one device of a mesh gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from aifx.models.base import Model
from aifx.objectives.base import DeviceBatch
from aifx.parallel.layout import Layout
from aifx.specs import Params, Specs
from aifx.tasks.base import Task


def model_params(model: Model, params: Params, specs: Specs, layout: Layout, dtype: DTypeLike | None = None) -> Params:
    """A device's part of the params as the model takes them: whole but for the nodes that it gathers itself.

    Floating-point arrays become `dtype`, if it is not None.
    """
    parts: Params = layout.parts(params, specs, model.gathers, dtype)
    return parts


def batch_partitions(task: Task, layout: Layout, batch: Mapping[str, Any]) -> dict[str, P]:
    """The PartitionSpec of each field of a batch."""
    fields = task.data.fields
    return {name: layout.batch_partition(fields[name].axes if name in fields else ()) for name in batch}


def row_ids(batch: DeviceBatch) -> jax.Array:
    """The number of each row within the global batch, int32 `[rows]`."""
    return jnp.arange(len(next(iter(batch.values()))), dtype=jnp.int32)
