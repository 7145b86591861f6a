"""One optimizer step as one compiled program: forward, backward, accumulation, clipping, update; the state donated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from aifx.config import Config
from aifx.data.base import Batch
from aifx.nn.precision import cast_floating, compute_dtype
from aifx.nn.specs import Params, Specs
from aifx.nn.stacking import has_stacked_layers
from aifx.parallel import DATA_AXIS, batch_sharding, replicated
from aifx.tasks.base import Task
from aifx.train.optimizers import clip_by_global_norm, make_optimizer, merge_weights, select_weights
from aifx.train.schedules import make_schedule
from aifx.train.state import TrainState

DeviceBatch: TypeAlias = Mapping[str, jax.Array]

NUMBERS = ("loss", "grad_norm", "learning_rate")
"""What a step tells, in this order, as one float32 array: one transfer to the host a step."""

StepFn: TypeAlias = Callable[[TrainState, DeviceBatch], tuple[TrainState, jax.Array]]


@dataclass(frozen=True)
class Recipe:
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


def make_recipe(config: Config, task: Task, mesh: Mesh) -> Recipe:
    """The step that `config` asks for."""
    specs = task.model.specs()
    schedule = make_schedule(config.schedule, config.train.num_steps)
    return Recipe(
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


def make_step(recipe: Recipe) -> StepFn:
    """The step as a pure function: (state, batch) -> (next state, NUMBERS)."""

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        loss, gradients = mean_gradients(recipe, state.params, batch, key)
        gradients, norm = clip_by_global_norm(gradients, recipe.clip_norm)
        weights = select_weights(state.params, recipe.specs)
        updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, weights)
        share = jnp.asarray(recipe.schedule(state.step), jnp.float32)
        updates = jax.tree.map(lambda u: u * share.astype(u.dtype), updates)
        params = merge_weights(optax.apply_updates(weights, updates), state.params, recipe.specs)
        rate = recipe.learning_rate * share
        numbers = jnp.stack([jnp.asarray(x, jnp.float32) for x in (loss, norm, rate)])
        return TrainState(state.step + 1, params, opt_state), numbers

    return step


def lower_step(recipe: Recipe, state: TrainState, batch: Batch) -> jax.stages.Lowered:
    """The step traced for the shapes of `batch` and the abstract `state`; `.compile()` gives the program."""
    sharding = batch_sharding(recipe.mesh)
    abstract = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding) for name, array in batch.items()
    }
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(make_step(recipe), donate_argnums=0, out_shardings=(shardings, replicated(recipe.mesh)))
    return jitted.lower(state, abstract)


def mean_gradients(recipe: Recipe, params: Params, batch: DeviceBatch, key: jax.Array) -> tuple[jax.Array, Any]:
    """Loss and gradients of total loss / total weight over the batch, whatever the number of micro-batches.

    Micro-batches add up sums: the mean is formed once, so that those with less weight count for less.
    """
    weights = select_weights(params, recipe.specs)

    def total_loss(weights: Any, batch: DeviceBatch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        cast = cast_floating(merge_weights(weights, params, recipe.specs), recipe.dtype)
        total, weight = recipe.task.objective(cast, batch, key, training=True)["loss"]
        return total.astype(jnp.float32), weight.astype(jnp.float32)

    sums = jax.value_and_grad(total_loss, has_aux=True)
    if recipe.gradient_accumulation == 1:
        (total, weight), gradients = sums(weights, batch, key)
    else:
        (total, weight), gradients = _accumulate(recipe, sums, weights, batch, key)
    weight = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
    return total / weight, jax.tree.map(lambda g: g / weight, gradients)


def _accumulate(recipe: Recipe, sums: Callable[..., Any], weights: Any, batch: DeviceBatch, key: jax.Array) -> Any:
    count = recipe.gradient_accumulation
    sharding = NamedSharding(recipe.mesh, PartitionSpec(None, DATA_AXIS))

    def split(array: jax.Array) -> jax.Array:
        # Row r goes to micro-batch r mod count: each device then splits the rows that it has, and none move.
        micro = array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)
        constrained: jax.Array = jax.lax.with_sharding_constraint(micro, sharding)
        return constrained

    def add(carry: Any, micro: tuple[DeviceBatch, jax.Array]) -> tuple[Any, None]:
        batch, index = micro
        return jax.tree.map(jnp.add, carry, sums(weights, batch, jax.random.fold_in(key, index))), None

    zero = jnp.zeros((), jnp.float32)
    start = ((zero, zero), jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), weights))
    micros = {name: split(jnp.asarray(array)) for name, array in batch.items()}
    total, _ = jax.lax.scan(add, start, (micros, jnp.arange(count)))
    return total
