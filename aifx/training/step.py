"""One optimizer step as one compiled program: forward, backward, accumulation, clipping, update; the state donated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from aifx.config import Config
from aifx.data.base import Batch
from aifx.nn.precision import cast_floating, compute_dtype
from aifx.nn.stacking import has_stacked_layers
from aifx.parallel import DATA_AXIS, batch_sharding, replicated
from aifx.specs import Params, Specs
from aifx.tasks.base import Task
from aifx.training.optimizers import clip_by_global_norm, make_optimizer, merge_weights, select_weights
from aifx.training.schedules import make_schedule
from aifx.training.state import TrainState

DeviceBatch: TypeAlias = Mapping[str, jax.Array]

STEP_METRICS = ("loss", "grad_norm", "learning_rate")
"""What a step tells, in this order, as one float32 array: one transfer to the host a step."""

StepFn: TypeAlias = Callable[[TrainState, DeviceBatch], tuple[TrainState, jax.Array]]


@dataclass(frozen=True)
class StepSpec:
    """What a step is made from."""

    task: Task
    specs: Specs
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    learning_rate: float
    clip_norm: float
    gradient_accumulation: int
    seed: int
    dtype: DTypeLike  # of the computation
    mesh: Mesh

    @property
    def is_stacked(self) -> bool:
        """Whether layers are scanned: stacked in memory, each under its own name on disk."""
        return has_stacked_layers(self.specs)

    @property
    def dtype_name(self) -> str:
        return jnp.dtype(self.dtype).name


def make_step_spec(config: Config, task: Task, mesh: Mesh) -> StepSpec:
    """The step that `config` asks for."""
    specs = task.model.specs()
    schedule = make_schedule(config.schedule, config.train.num_steps)
    return StepSpec(
        task=task,
        specs=specs,
        optimizer=make_optimizer(config.optimizer, specs),
        schedule=schedule,
        learning_rate=config.optimizer.learning_rate,
        clip_norm=config.optimizer.clip_norm,
        gradient_accumulation=config.train.gradient_accumulation,
        seed=config.train.seed,
        dtype=compute_dtype(config.train.precision, mesh.devices.flat[0].platform),
        mesh=mesh,
    )


def make_step(step_spec: StepSpec) -> StepFn:
    """The step as a pure function: (state, batch) -> (next state, STEP_METRICS)."""

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, jax.Array]:
        loss, gradients = mean_gradients(step_spec, state.params, batch, step_key(step_spec, state.step))
        state, norm, rate = apply_gradients(step_spec, state, gradients)
        numbers = jnp.stack([jnp.asarray(x, jnp.float32) for x in (loss, norm, rate)])
        return state, numbers

    return step


def step_key(step_spec: StepSpec, step: jax.Array) -> jax.Array:
    """The randomness of one step."""
    return jax.random.fold_in(jax.random.key(step_spec.seed), step)


def apply_gradients(step_spec: StepSpec, state: TrainState, gradients: Any) -> tuple[TrainState, jax.Array, jax.Array]:
    """Clipping, the optimizer, the update: the next state, the norm before clipping and the learning rate."""
    gradients, norm = clip_by_global_norm(gradients, step_spec.clip_norm)
    weights = select_weights(state.params, step_spec.specs)
    updates, opt_state = step_spec.optimizer.update(gradients, state.opt_state, weights)
    share = jnp.asarray(step_spec.schedule(state.step), jnp.float32)
    updates = jax.tree.map(lambda u: u * share.astype(u.dtype), updates)
    params = merge_weights(optax.apply_updates(weights, updates), state.params, step_spec.specs)
    return TrainState(state.step + 1, params, opt_state), norm, step_spec.learning_rate * share


def lower_step(step_spec: StepSpec, state: TrainState, batch: Batch) -> jax.stages.Lowered:
    """The step traced for the shapes of `batch` and the abstract `state`; `.compile()` gives the program."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(make_step(step_spec), donate_argnums=0, out_shardings=(shardings, replicated(step_spec.mesh)))
    return jitted.lower(state, abstract_batch(step_spec, batch))


def abstract_batch(step_spec: StepSpec, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch as `place_batch` lays it on the devices."""
    sharding = batch_sharding(step_spec.mesh)
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding) for name, array in batch.items()}


def mean_gradients(step_spec: StepSpec, params: Params, batch: DeviceBatch, key: jax.Array) -> tuple[jax.Array, Any]:
    """Loss and gradients of total loss / total weight over the batch, whatever the number of micro-batches.

    Micro-batches add up sums: the mean is formed once, so that those with less weight count for less.
    """
    weights = select_weights(params, step_spec.specs)
    sums = partial(jax.value_and_grad(_total_loss(step_spec, params), has_aux=True), weights)
    zero = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), weights)
    (total, weight), gradients = _summed(step_spec, sums, (_no_loss(), zero), batch, key)
    weight = _divisor(weight)
    return total / weight, jax.tree.map(lambda g: g / weight, gradients)


def mean_loss(step_spec: StepSpec, params: Params, batch: DeviceBatch, key: jax.Array) -> jax.Array:
    """The loss of `mean_gradients`: its forward pass alone."""
    sums = partial(_total_loss(step_spec, params), select_weights(params, step_spec.specs))
    total, weight = _summed(step_spec, sums, _no_loss(), batch, key)
    loss: jax.Array = total / _divisor(weight)
    return loss


def _total_loss(step_spec: StepSpec, params: Params) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(weights, batch, key) -> total and weight of the loss, with the rest of the model from `params`."""

    def total_loss(weights: Any, batch: DeviceBatch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        cast = cast_floating(merge_weights(weights, params, step_spec.specs), step_spec.dtype)
        total, weight = step_spec.task.objective(cast, batch, key, training=True)["loss"]
        return total.astype(jnp.float32), weight.astype(jnp.float32)

    return total_loss


def _no_loss() -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)


def _divisor(weight: jax.Array) -> jax.Array:
    return jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)


def _summed(step_spec: StepSpec, sums: Callable[..., Any], zero: Any, batch: DeviceBatch, key: jax.Array) -> Any:
    """`sums(batch, key)`, added up over the micro-batches, from `zero` on."""
    count = step_spec.gradient_accumulation
    if count == 1:
        return sums(batch, key)
    sharding = NamedSharding(step_spec.mesh, PartitionSpec(None, DATA_AXIS))

    def split(array: jax.Array) -> jax.Array:
        # Row r goes to micro-batch r mod count: each device then splits the rows that it has, and none move.
        micro = array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)
        constrained: jax.Array = jax.lax.with_sharding_constraint(micro, sharding)
        return constrained

    def add(carry: Any, micro: tuple[DeviceBatch, jax.Array]) -> tuple[Any, None]:
        batch, index = micro
        return jax.tree.map(jnp.add, carry, sums(batch, jax.random.fold_in(key, index))), None

    micros = {name: split(jnp.asarray(array)) for name, array in batch.items()}
    total, _ = jax.lax.scan(add, zero, (micros, jnp.arange(count)))
    return total
