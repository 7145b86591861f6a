"""Training the head of a model alone: the other weights become buffers, without gradients or optimizer state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from aifx.core.errors import ConfigError
from aifx.models.base import Model
from aifx.objectives.base import head_of
from aifx.parallel.context import ForwardContext
from aifx.specs import ArraySpec, Params, Specs, is_spec, map_specs


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
