"""The training state as checkpoints hold it."""

from __future__ import annotations

from typing import Any

import jax

from aifx.checkpoint.naming import from_named, to_named
from aifx.nn.stacking import stack_layers, unstack_layers
from aifx.programs.state import TrainState


def to_tree(state: TrainState, *, stacked: bool) -> dict[str, Any]:
    """The state as nested dicts, each layer under its own number: its form in checkpoints."""
    tree: dict[str, Any] = unstack_layers(to_named(state)) if stacked else to_named(state)
    return tree


def from_tree(tree: dict[str, Any], like: TrainState, *, stacked: bool) -> TrainState:
    """The inverse of `to_tree`, in the structure and the shardings of the abstract `like`."""
    state = from_named(stack_layers(tree) if stacked else tree, like)

    def place(x: Any, abstract: Any) -> Any:
        return x if getattr(x, "sharding", None) == abstract.sharding else jax.device_put(x, abstract.sharding)

    placed: TrainState = jax.tree.map(place, state, like)
    return placed
