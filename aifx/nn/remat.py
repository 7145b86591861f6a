"""Rematerialization: the backward pass of a layer computes activations again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from aifx.config.sections import Remat
from aifx.parallel.layout import Layout

Layer: TypeAlias = Callable[..., tuple[jax.Array, Any]]

CHEAP = frozenset(
    ("all_gather", "linear_call", "name", "reshape", "convert_element_type", "transpose", "broadcast_in_dim", "squeeze")
)
"""Operations whose results are not kept; `Layout.gather` is a linear_call. A gathered weight would be kept under
another name if these could keep it."""


def rematerialized(layer: Layer, remat: Remat, layout: Layout) -> Layer:
    """A layer whose backward pass recomputes nothing ("none"), all but matrix products ("dots"), or everything.

    A weight that the layer gathers from other devices is not kept for the backward pass, which gathers it again.
    """
    if remat == "none" and layout.num_devices == layout.degrees.data:  # nothing is gathered
        return layer
    keep = {"none": _is_kept, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}[remat]
    recomputed: Layer = jax.checkpoint(layer, policy=keep)
    return recomputed


def _is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in CHEAP
