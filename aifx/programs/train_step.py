"""One optimizer step: forward, backward, accumulation, clipping, update."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from aifx.config import Config
from aifx.objectives.base import DeviceBatch
from aifx.objectives.checks import check_sums
from aifx.optim import clip_by_norm, merge_weights, round_weights, select_weights, update_average
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.programs.state import TrainState
from aifx.specs import Params, Specs, merge_frozen, split_frozen, widened
from aifx.tasks.base import Task
from aifx.tasks.ensemble import Ensemble

STEP_METRICS = ("loss", "grad_norm", "learning_rate")
"""The numbers that a step reports, in this order, as one float32 array: one transfer to the host per step."""

ROUNDING = 0x726F756E
"""Folded into the step's key for the update's stochastic rounding, which so draws other bits than dropout."""


@dataclass(frozen=True, eq=False)
class TrainStep:
    """The step as a pure function.

    Loss and gradients are the program of one device (`Layout.per_device`). What follows is about whole arrays, and the
    compiler divides it as the state is divided.

    Attributes:
        schedule: the learning rate as a share of its peak, by the count of updates.
        specs: of the whole model; those of weights and buffers are `trained`.
        dtype: of the computation.
    """

    config: Config
    task: Task
    layout: Layout
    specs: Specs
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    dtype: DTypeLike

    @functools.cached_property
    def trained(self) -> Specs:
        return split_frozen(self.specs, self.specs)[0]  # type: ignore[no-any-return]

    # A step whose loss or gradients are not finite updates nothing, as with loss scaling (Micikevicius et al. 2018,
    # arXiv:1710.03740, section 3.2). The loss is not scaled here: bfloat16 has the exponents of float32, so gradients
    # do not underflow as they do in float16.
    def __call__(self, state: TrainState, frozen: Params, batch: DeviceBatch) -> tuple[TrainState, jax.Array]:
        """The next state, and STEP_METRICS. If loss or norm is not finite, only the step of the state changes."""
        loss, gradients = self.loss_and_gradients(state, frozen, batch)
        norm, rate = optax.tree.norm(gradients), self.config.optimizer.learning_rate * self.share(state)
        is_good = jnp.isfinite(loss) & jnp.isfinite(norm)
        updated = self.update(state, gradients, norm)
        if self.layout.platform == "cpu":
            # Otherwise XLA computes the moments twice, in other loops with other rounding, and copies the old ones.
            updated = jax.tree.map(jax.lax.optimization_barrier, updated)
        kept = replace(state, step=updated.step)
        state = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), updated, kept)
        return state, jnp.stack([jnp.asarray(x, jnp.float32) for x in (loss, norm, rate)])

    def loss_and_gradients(self, state: TrainState, frozen: Params, batch: DeviceBatch) -> tuple[jax.Array, Any]:
        """Loss and gradients of total loss / total weight over the batch, whatever the number of micro-batches.

        Micro-batches and devices add up sums. The mean is formed once, so that those with less weight count for less.
        """

        def program(params: Params, frozen: Params, batch: DeviceBatch, ids: jax.Array, key: jax.Array) -> Any:
            weights = select_weights(params, self.trained)

            def sums(weights: Any, batch: DeviceBatch, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
                merged = merge_frozen(merge_weights(weights, params, self.trained), frozen)
                return self.loss_sums(merged, batch, key, ids)

            sums_and_gradients = functools.partial(jax.value_and_grad(sums, has_aux=True), weights)
            zero = (jnp.zeros(()), jnp.zeros(())), widened(jax.tree.map(jnp.zeros_like, weights))
            totals, gradients = self._accumulate(sums_and_gradients, zero, batch, ids)
            return self.layout.sum(totals), self.layout.sync(gradients, self.trained)

        gradient_parts = select_weights(self.layout.partitions(self.trained), self.trained)
        (total, weight), gradients = self._per_device(program, (P(), gradient_parts), state, frozen, batch)
        weight = at_least_tiny(weight)
        return total / weight, jax.tree.map(lambda g: g / weight, gradients)

    def loss(self, state: TrainState, frozen: Params, batch: DeviceBatch) -> jax.Array:
        """The loss of `loss_and_gradients`: its forward pass alone."""

        def program(params: Params, frozen: Params, batch: DeviceBatch, ids: jax.Array, key: jax.Array) -> Any:
            def sums(batch: DeviceBatch, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
                return self.loss_sums(merge_frozen(params, frozen), batch, key, ids)

            return self.layout.sum(self._accumulate(sums, (jnp.zeros(()), jnp.zeros(())), batch, ids))

        total, weight = self._per_device(program, P(), state, frozen, batch)
        loss: jax.Array = total / at_least_tiny(weight)
        return loss

    def loss_sums(
        self, params: Params, batch: DeviceBatch, key: jax.Array, row_ids: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Total and weight of the loss over a device's part of some rows of the batch, float32."""
        ctx = ForwardContext(self.layout, training=True, key=key, row_ids=row_ids)
        model = self.task.model
        whole = self.layout.parts(params, self.specs, model.gathers, self.dtype)
        if isinstance(model, Ensemble):
            batch = model.training_batch(batch)
        sums = self.task.objective.sums(model, whole, batch, ctx)
        total, weight = check_sums(self.task.objective, sums)["loss"]
        return total.astype(jnp.float32), weight.astype(jnp.float32)

    def update(self, state: TrainState, gradients: Any, norm: jax.Array) -> TrainState:
        """Clipping, the optimizer, the average: the next state from gradients and their global norm."""
        model, bound = self.task.model, self.config.optimizer.clip_norm
        if isinstance(model, Ensemble):
            gradients = model.clip(gradients, bound)
        else:
            gradients = clip_by_norm(gradients, norm, bound)
        weights = widened(select_weights(state.params, self.trained))
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, weights)
        share = self.share(state)
        updates = jax.tree.map(lambda u: u * share.astype(u.dtype), updates)
        key = jax.random.fold_in(self._key(state), ROUNDING)
        weights = round_weights(optax.apply_updates(weights, updates), self.trained, key)
        params = merge_weights(weights, state.params, self.trained)
        ema = state.ema
        if ema is not None:
            ema = update_average(ema, params, self.trained, self.config.optimizer.ema_decay, state.step)
        return TrainState(state.step + 1, params, opt_state, ema)

    def share(self, state: TrainState) -> jax.Array:
        """The learning rate as a share of its peak, float32 scalar."""
        return jnp.asarray(self.schedule(state.step), jnp.float32)

    def _key(self, state: TrainState) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.config.train.seed), state.step)

    def _per_device(
        self, program: Callable[..., Any], results: Any, state: TrainState, frozen: Params, batch: DeviceBatch
    ) -> Any:
        """Run `program` on each device, on its part of params, frozen arrays, batch and row ids, and the step's key."""
        trained, of_frozen = self.layout.partitions(self.trained), split_frozen(self.specs, self.specs)[1]
        parts = trained, self.layout.partitions(of_frozen), batch_partitions(self.task, self.layout, batch)
        mapped = self.layout.per_device(program, (*parts, self.layout.batch_partition(), P()), results)
        return mapped(state.params, frozen, batch, row_ids(batch), self._key(state))

    # Sums are accumulated, never means: with 10 tokens of loss 1 in one micro-batch and 30 of loss 2 in another, the
    # mean of the means is 1.5, but the loss of the batch is 70 / 40 = 1.75. Trainers that averaged each micro-batch
    # trained another loss if rows had different lengths (https://huggingface.co/blog/gradient_accumulation). Memory
    # holds one set of gradients, and the activations of one micro-batch at a time.
    def _accumulate(
        self, sums: Callable[[DeviceBatch, jax.Array], Any], zero: Any, batch: DeviceBatch, ids: jax.Array
    ) -> Any:
        """The sum over micro-batches of what `sums` returns for each and the ids of its rows."""
        count = self.config.train.gradient_accumulation
        if count == 1:
            return sums(batch, ids)

        def split(array: jax.Array) -> jax.Array:
            # Row r goes to micro-batch r mod count, also of the rows of one device: none move.
            return array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)

        def add(carry: Any, micro: tuple[DeviceBatch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, sums(*micro)), None

        micro_batches = {name: split(array) for name, array in batch.items()}, split(ids)
        return jax.lax.scan(add, zero, micro_batches)[0]


def at_least_tiny(weight: jax.Array) -> jax.Array:
    """A divisor for a sum of weights that may be 0."""
    return jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)


def batch_partitions(task: Task, layout: Layout, batch: Mapping[str, Any]) -> dict[str, P]:
    """The PartitionSpec of each field of a batch."""
    fields = task.data.fields
    return {name: layout.batch_partition(fields[name].axes if name in fields else ()) for name in batch}


def row_ids(batch: DeviceBatch) -> jax.Array:
    """The number of each row within the global batch, int32 `[rows]`."""
    return jnp.arange(len(next(iter(batch.values()))), dtype=jnp.int32)
