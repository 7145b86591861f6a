"""The state that a training step turns into the next: step count, parameters, optimizer state, averaged weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from aifx.core.errors import ConfigError
from aifx.models.base import Model
from aifx.objectives.base import head_of
from aifx.optim import select_weights
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.specs import (
    ArraySpec,
    Params,
    Specs,
    init_params,
    is_spec,
    map_specs,
    split_frozen,
    widened,
    with_frozen_dtype,
    with_weight_dtype,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Updates done (int32 scalar), weights and buffers, and the optimizer's state over the weights.

    With `optimizer.ema_decay`, `ema` holds the params with averaged weights, float32 or wider. Frozen arrays are no
    part of the state: they are an argument of the step, and of no checkpoint.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    ema: Params | None = None

    @property
    def evaluated(self) -> Params:
        """The params that evaluation takes: the averaged ones if there are any."""
        return self.params if self.ema is None else self.ema


def typed_specs(model: Model, parameter_dtype: DTypeLike, dtype: DTypeLike, *, has_adapters: bool) -> Specs:
    """The specs of a model in the types in which a run keeps its arrays.

    Weights have `parameter_dtype`. Frozen arrays are never updated, so with adapters they need no wider type than that
    of the computation, `dtype`.
    """
    kept = jnp.dtype(parameter_dtype)
    specs = with_weight_dtype(model.specs(), kept)
    if not has_adapters:
        return specs
    return with_frozen_dtype(specs, min(kept, jnp.dtype(dtype), key=lambda one: one.itemsize))


def initial_state(
    specs: Specs, optimizer: optax.GradientTransformation, seed: int, *, has_ema: bool = False
) -> tuple[TrainState, Params]:
    """The state before the first update, and the frozen arrays, of a whole model's specs. To be run inside jit."""
    params, frozen = split_frozen(init_params(specs, jax.random.key(seed)), specs)
    trained, _ = split_frozen(specs, specs)
    opt_state = optimizer.init(widened(select_weights(params, trained)))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, first_average(params) if has_ema else None), frozen


def first_average(params: Params) -> Params:
    """The params as their average begins, in memory of its own, so that both can be donated."""
    copy: Params = widened(jax.tree.map(jnp.copy, params))
    return copy


def abstract_state(
    specs: Specs, optimizer: optax.GradientTransformation, layout: Layout, *, has_ema: bool = False
) -> tuple[TrainState, Params]:
    """Shapes, dtypes and shardings of `initial_state`; nothing is computed."""

    def struct(x: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    trained, frozen = split_frozen(specs, specs)
    params, places = map_specs(lambda s: s.struct, trained), layout.of_params(trained)
    opt_state = jax.eval_shape(optimizer.init, widened(select_weights(params, trained)))
    placed = jax.tree.map(struct, params, places)
    state = TrainState(
        struct(jax.ShapeDtypeStruct((), jnp.int32), layout.replicated),
        placed,
        jax.tree.map(struct, opt_state, layout.of_optimizer(opt_state, places)),
        widened(placed) if has_ema else None,
    )
    return state, jax.tree.map(struct, map_specs(lambda s: s.struct, frozen), layout.of_params(frozen))


def make_frozen(specs: Specs, seed: int, layout: Layout) -> Params:
    """The frozen arrays of a model where they will be: a function of the specs and the seed."""
    make = jax.jit(lambda: init_params(specs, jax.random.key(seed)), out_shardings=layout.of_params(specs))
    frozen: Params = make() if specs else {}
    return frozen


def head_names(model: Model, ctx: ForwardContext) -> frozenset[str]:
    """The names ("output/weight") of the arrays that the model's head reads, found by tracing it."""

    def head(params: Params) -> Any:
        found = head_of(model, params, ctx)
        return found.weight, found.bias

    structs = map_specs(lambda spec: spec.struct, model.specs())
    jaxpr = jax.make_jaxpr(head)(structs).jaxpr
    read = {id(var) for var in (*jaxpr.outvars, *(var for equation in jaxpr.eqns for var in equation.invars))}
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(structs))
    return frozenset(_name(path) for path, var in zip(paths, jaxpr.invars, strict=True) if id(var) in read)


def freeze_backbone(model: Model, specs: Specs, ctx: ForwardContext) -> Specs:
    """The specs of a model, in which the head's weights alone take gradients. Checkpoints hold the others all the same.

    Raises ConfigError if the head has no weights.
    """
    names = head_names(model, ctx)
    if not names:
        why = f"{type(model).__name__}.head reads no array of the model"
        raise ConfigError('finetune.freeze = "backbone" leaves nothing to train', why, "aifx config keys finetune")

    def frozen(path: Any, spec: ArraySpec) -> ArraySpec:
        return spec if spec.kind != "weight" or _name(path) in names else replace(spec, kind="buffer")

    found: Specs = jax.tree_util.tree_map_with_path(frozen, specs, is_leaf=is_spec)
    return found


def _name(path: Any) -> str:
    return "/".join(str(part.key) for part in path)
