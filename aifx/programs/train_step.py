"""One optimizer step: forward, backward, accumulation, clipping, update."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from aifx.config import Config
from aifx.nn.precision import cast_floating
from aifx.objectives.base import DeviceBatch
from aifx.objectives.checks import check_sums
from aifx.optim import clip_by_global_norm, make_schedule, merge_weights, select_weights, update_average
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.programs.state import TrainState
from aifx.specs import Params, Specs, merge_frozen
from aifx.tasks.base import Task

STEP_METRICS = ("loss", "grad_norm", "learning_rate")
"""What a step reports, in this order, as one float32 array: one transfer to the host per step."""


@dataclass(frozen=True, eq=False)
class TrainStep:
    """The step as a pure function. `specs` are those of weights and buffers, `dtype` is that of the computation."""

    config: Config
    task: Task
    layout: Layout
    specs: Specs
    optimizer: optax.GradientTransformation
    dtype: DTypeLike

    def __call__(self, state: TrainState, frozen: Params, batch: DeviceBatch) -> tuple[TrainState, jax.Array]:
        """The next state, and STEP_METRICS."""
        loss, gradients = self.loss_and_gradients(state, frozen, batch)
        state, norm, rate = self.update(state, gradients)
        return state, jnp.stack([jnp.asarray(x, jnp.float32) for x in (loss, norm, rate)])

    def loss_and_gradients(self, state: TrainState, frozen: Params, batch: DeviceBatch) -> tuple[jax.Array, Any]:
        """Loss and gradients of total loss / total weight over the batch, whatever the number of micro-batches.

        Micro-batches add up sums. The mean is formed once, so that those with less weight count for less.
        """
        weights, key = select_weights(state.params, self.specs), self._key(state)

        def sums(weights: Any, batch: DeviceBatch, row_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
            params = merge_frozen(merge_weights(weights, state.params, self.specs), frozen)
            return self.loss_sums(params, batch, key, row_ids)

        sums_and_gradients = functools.partial(jax.value_and_grad(sums, has_aux=True), weights)
        zero = (jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, weights)
        (total, weight), gradients = self._accumulate(sums_and_gradients, zero, batch)
        weight = at_least_tiny(weight)
        return total / weight, jax.tree.map(lambda g: g / weight, gradients)

    def loss(self, state: TrainState, frozen: Params, batch: DeviceBatch) -> jax.Array:
        """The loss of `loss_and_gradients`: its forward pass alone."""
        params, key = merge_frozen(state.params, frozen), self._key(state)

        def sums(batch: DeviceBatch, row_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.loss_sums(params, batch, key, row_ids)

        total, weight = self._accumulate(sums, (jnp.zeros(()), jnp.zeros(())), batch)
        loss: jax.Array = total / at_least_tiny(weight)
        return loss

    def loss_sums(
        self, params: Params, batch: DeviceBatch, key: jax.Array, row_ids: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Total and weight of the loss over some rows of the batch, float32."""
        ctx = ForwardContext(self.layout, training=True, key=key, row_ids=row_ids)
        sums = self.task.objective.sums(self.task.model, cast_floating(params, self.dtype), batch, ctx)
        total, weight = check_sums(self.task.objective, sums)["loss"]
        return total.astype(jnp.float32), weight.astype(jnp.float32)

    def update(self, state: TrainState, gradients: Any) -> tuple[TrainState, jax.Array, jax.Array]:
        """Clipping, the optimizer, the average: the next state, the norm before clipping and the learning rate."""
        schedule = make_schedule(self.config.schedule, self.config.train.num_steps)
        gradients, norm = clip_by_global_norm(gradients, self.config.optimizer.clip_norm)
        weights = select_weights(state.params, self.specs)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, weights)
        share = jnp.asarray(schedule(state.step), jnp.float32)
        updates = jax.tree.map(lambda u: u * share.astype(u.dtype), updates)
        params = merge_weights(optax.apply_updates(weights, updates), state.params, self.specs)
        ema = state.ema
        if ema is not None:
            ema = update_average(ema, params, self.specs, self.config.optimizer.ema_decay, state.step)
        return TrainState(state.step + 1, params, opt_state, ema), norm, self.config.optimizer.learning_rate * share

    def _key(self, state: TrainState) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.config.train.seed), state.step)

    def _accumulate(self, sums: Callable[[DeviceBatch, jax.Array], Any], zero: Any, batch: DeviceBatch) -> Any:
        """The sum over micro-batches of what `sums` returns for each and the ids of its rows."""
        count = self.config.train.gradient_accumulation
        if count == 1:
            return sums(batch, row_ids(batch))

        def split(array: jax.Array) -> jax.Array:
            # Row r goes to micro-batch r mod count: each device then splits the rows that it has, and none move.
            micro = array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)
            constrained: jax.Array = jax.lax.with_sharding_constraint(micro, self.layout.micro_rows)
            return constrained

        def add(carry: Any, micro: tuple[DeviceBatch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, sums(*micro)), None

        micro_batches = {name: split(array) for name, array in batch.items()}, split(row_ids(batch))
        return jax.lax.scan(add, zero, micro_batches)[0]


def row_ids(batch: DeviceBatch) -> jax.Array:
    """The number of each row within the global batch, int32 `[rows]`."""
    return jnp.arange(len(next(iter(batch.values()))), dtype=jnp.int32)


def at_least_tiny(weight: jax.Array) -> jax.Array:
    """A divisor for a sum of weights that may be 0."""
    return jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
