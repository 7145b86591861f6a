"""What a training step turns into the next: step count, parameters, optimizer state; and its form on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from aifx.checkpoint.naming import from_named, to_named
from aifx.nn.stacking import stack_layers, unstack_layers
from aifx.parallel import opt_state_shardings, param_shardings, replicated
from aifx.specs import Params, Specs, init_params, map_specs
from aifx.training.optimizers import select_weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Updates done (int32 scalar), parameters, and the optimizer's state over the weights among them."""

    step: jax.Array
    params: Params
    opt_state: Any


def initial_state(specs: Specs, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first update. To be run inside jit or `eval_shape`."""
    params = init_params(specs, jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(select_weights(params, specs)))


def abstract_state(specs: Specs, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is computed."""
    params = map_specs(lambda s: s.struct, specs)
    opt_state = jax.eval_shape(optimizer.init, select_weights(params, specs))
    places = param_shardings(specs, mesh)

    def struct(x: Any, sharding: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return TrainState(
        struct(jax.ShapeDtypeStruct((), jnp.int32), replicated(mesh)),
        jax.tree.map(struct, params, places),
        jax.tree.map(struct, opt_state, opt_state_shardings(opt_state, places, mesh)),
    )


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
