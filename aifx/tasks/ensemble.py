"""An ensemble of folds as one model: `train.folds`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from aifx.data.arrays import FOLD, WEIGHTS
from aifx.models.base import Head, Model
from aifx.objectives.base import Objective, outputs
from aifx.optim import clip_by_norm
from aifx.parallel.context import ForwardContext
from aifx.specs import ArraySpec, Initializer, Params, Specs, map_specs


class Ensemble(Model):
    """`folds` models like `member` as one, whose arrays have a leading dimension of members.

    A batch has the fold of each row as FOLD, int32 `[rows]`. Member i is trained on the rows of all folds but i. When
    evaluating, the outputs for a row are those of the member of its fold, which never saw it. A row without a fold
    (-1, or a batch without FOLD) has those of all members, as `Objective.combine` forms them.
    """

    def __init__(self, member: Model, objective: Objective, folds: int) -> None:
        self.member, self.objective, self.folds = member, objective, folds

    def specs(self) -> Specs:
        return map_specs(lambda spec: _repeated(spec, self.folds), self.member.specs())  # type: ignore[no-any-return]

    def flops(self, rows: int) -> int:
        return self.folds * self.member.flops(rows)

    def training_batch(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The rows once for each member, `[members x rows, ...]`; one of a member's own fold has no weight."""
        repeated = {name: jnp.concatenate([values] * self.folds) for name, values in batch.items()}
        member = jnp.repeat(jnp.arange(self.folds), len(batch[FOLD]))
        weights = repeated[WEIGHTS]
        is_trained = (repeated[FOLD] != member).reshape(-1, *(1,) * (weights.ndim - 1))
        return {**repeated, WEIGHTS: jnp.where(is_trained, weights, 0)}

    def clip(self, gradients: Any, bound: float) -> Any:
        """The gradients of each member's own loss, clipped to a norm of `bound` member by member.

        The loss is the mean over the rows of all members, and a member's rows are about one of `folds` parts of them.
        With one norm for all, the rows of a fold would reach its member through the gradients of the others.
        """

        def of_member(gradients: Any) -> Any:
            own = jax.tree.map(lambda g: g * self.folds, gradients)
            return clip_by_norm(own, optax.tree.norm(own), bound)

        return jax.vmap(of_member)(gradients)

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        """The outputs `[rows, outputs]`; in training those of a `training_batch`, `[members x rows, outputs]`."""

        def outputs_of(number: jax.Array, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
            key = None if ctx.key is None else jax.random.fold_in(ctx.key, number)
            return outputs(self.member, params, batch, replace(ctx, key=key))

        if ctx.training:
            own = {name: values.reshape(self.folds, -1, *values.shape[1:]) for name, values in batch.items()}
            found = jax.vmap(outputs_of)(jnp.arange(self.folds), params, own)
            return found.reshape(-1, found.shape[-1])
        found = jax.vmap(outputs_of, in_axes=(0, 0, None))(jnp.arange(self.folds), params, batch)
        combined = self.objective.combine(found)
        if FOLD not in batch:
            return combined
        fold = batch[FOLD]
        held_out = found[jnp.maximum(fold, 0), jnp.arange(len(fold))]
        return jnp.where(fold[:, None] < 0, combined, held_out)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        first = jax.tree.map(lambda array: array[0], params)
        return AsIs(jnp.eye(self.member.head(first, ctx).weight.shape[-1]))


@dataclass(frozen=True)
class AsIs(Head):
    """The head of a model whose hidden vectors are its outputs. A product would round them on some devices."""

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return hidden


def _repeated(spec: ArraySpec, count: int) -> ArraySpec:
    matrix, product = (
        pair and (tuple(axis + 1 for axis in pair[0]), tuple(axis + 1 for axis in pair[1]))
        for pair in (spec.matrix, spec.product)
    )
    shape, axes = (count, *spec.shape), (None, *spec.axes)
    return replace(spec, shape=shape, axes=axes, init=_of_each(spec.init), matrix=matrix, product=product)


@functools.cache  # one function for each initializer, by which arrays that are made alike are known
def _of_each(init: Initializer) -> Initializer:
    """The initializer for each member, with a key of its own."""

    def made(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return made
