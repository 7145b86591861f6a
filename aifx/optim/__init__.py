"""The update rule: AdamW, or Muon for matrices with AdamW for the rest; clipping; the average; the schedule.

A tree of weights here is the params' tree with None in place of frozen arrays and buffers, which get no updates and no
optimizer state.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import muon

from aifx.config.sections import OptimizerSection, ScheduleSection
from aifx.optim.sharded_muon import muon_dimensions, newton_schulz, scale_by_sharded_muon
from aifx.parallel.layout import Layout
from aifx.specs import ArraySpec, Params, Specs, array_keys, is_spec, map_specs, wide_dtype


def make_optimizer(
    section: OptimizerSection, specs: Specs, layout: Layout | None = None
) -> optax.GradientTransformation:
    """The optimizer of the weights among `specs`.

    Decoupled decay falls on arrays whose spec says `decay` (with muon: on matrices among them alone). A stacked array
    `[layers, ...]` is updated exactly as its layers would be one by one. Updates are those of the peak learning rates:
    the step scales them by the schedule, on its own count of steps, which a fork with a new optimizer state keeps.
    """
    if section.kind == "adamw":
        return optax.adamw(
            section.learning_rate,
            b1=section.beta1,
            b2=section.beta2,
            eps=section.epsilon,
            mu_dtype=section.moment_dtype,
            weight_decay=section.weight_decay,
            mask=partial(_decays_of, specs=specs),
        )
    if layout is not None and layout.num_devices > 1:
        return _sharded_muon(section, specs, layout)
    dimensions = select_weights(map_specs(muon_dimensions, specs), specs)
    # Masks of muon's are trees over all weights; decays of its matrices alone must not name the others.
    return muon(
        section.learning_rate,
        beta=section.momentum,
        eps=section.epsilon,
        mu_dtype=section.moment_dtype,
        weight_decay=section.weight_decay,
        weight_decay_mask=partial(_decays_of, specs=specs),
        adam_b1=section.beta1,
        adam_b2=section.beta2,
        adam_learning_rate=section.adam_learning_rate or section.learning_rate,
        muon_weight_dimension_numbers=lambda _: dimensions,
        **newton_schulz(section),
    )


def _sharded_muon(section: OptimizerSection, specs: Specs, layout: Layout) -> optax.GradientTransformation:
    """The `muon` of `make_optimizer`, and its state, on a mesh."""
    labels = select_weights(map_specs(lambda s: "muon" if s.matrix else "adam", specs), specs)
    matrices = optax.chain(
        scale_by_sharded_muon(specs, layout, section),
        optax.add_decayed_weights(section.weight_decay, partial(_decays_of, specs=specs)),
        optax.scale_by_learning_rate(section.learning_rate),
    )
    others = optax.adamw(
        section.adam_learning_rate or section.learning_rate,
        b1=section.beta1,
        b2=section.beta2,
        eps=section.epsilon,
        mu_dtype=section.moment_dtype,
        weight_decay=0.0,
        nesterov=True,
    )
    return optax.partition({"muon": matrices, "adam": others}, labels)


def select_weights(tree: Any, specs: Specs) -> Any:
    """`tree` (as the params are) with None in place of what takes no gradient."""
    return jax.tree.map(lambda spec, node: node if spec.kind == "weight" else None, specs, tree, is_leaf=is_spec)


def merge_weights(weights: Any, params: Params, specs: Specs) -> Params:
    """`params` with its weights replaced."""
    merged: Params = jax.tree.map(
        lambda spec, weight, param: weight if spec.kind == "weight" else param, specs, weights, params, is_leaf=is_spec
    )
    return merged


def clip_by_norm(gradients: Any, norm: jax.Array, bound: float) -> Any:
    """Gradients of the global norm `norm` as gradients of `bound` at most; 0 never clips."""
    if bound <= 0:
        return gradients
    scale = jnp.minimum(1.0, bound / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)


def update_average(average: Params, params: Params, specs: Specs, decay: float, count: jax.Array) -> Params:
    """The exponential moving average of the weights after update number `count`, from 0; buffers as in `params`.

    The decay is (1 + count) / (4 + count) until that exceeds `decay`, so that the first weights do not stay in the
    average of a short run. Like TensorFlow's ExponentialMovingAverage with num_updates, which has 10 in place of 4 and
    so averages fewer steps: tables that were validated as often as the average forgets had higher errors with it.
    """
    share = jnp.maximum(1.0 - decay, 3.0 / (4.0 + count))

    def update(spec: ArraySpec, mean: jax.Array, param: jax.Array) -> jax.Array:
        param = param.astype(mean.dtype)
        return mean + share.astype(mean.dtype) * (param - mean) if spec.kind == "weight" else param

    updated: Params = jax.tree.map(update, specs, average, params, is_leaf=is_spec)
    return updated


def make_schedule(section: ScheduleSection, run_steps: int) -> optax.Schedule:
    """The learning rate as a share of its peak, in a run of `run_steps`: update count (from 0) -> share in [0, 1].

    Linear warm-up from 0, then:
        cosine: half a cosine down to `final_fraction` at the last update, by default of the run.
        wsd: stable at 1, then linear down to `final_fraction` over the last `decay_fraction` of the schedule
            (warm-up-stable-decay, Hu et al. 2024, arXiv:2404.06395).
        constant: 1.

    Update i uses schedule(i + 1): the first update of a warm-up is not wasted on a rate of 0, and the last one has the
    final rate. The warm-up takes at most half of the schedule and gives way to the decay, so that a project's settings
    also hold for a short trial of it.
    """
    num_steps, decay, warmup = section.steps_of(run_steps), section.decay_of(run_steps), section.warmup_of(run_steps)
    parts: list[optax.Schedule] = [optax.linear_schedule(0.0, 1.0, max(warmup, 1))]
    boundaries = [warmup]
    match section.kind:
        case "constant":
            parts.append(optax.constant_schedule(1.0))
        case "cosine":
            parts.append(optax.cosine_decay_schedule(1.0, num_steps - warmup, alpha=section.final_fraction))
        case "wsd":
            parts += [optax.constant_schedule(1.0), optax.linear_schedule(1.0, section.final_fraction, max(decay, 1))]
            boundaries.append(num_steps - decay)
    joined = optax.join_schedules(parts, boundaries)
    # Compiled, the last of a linear decay to 0 is rounded to below it.
    return lambda count: jnp.clip(joined(count + 1), 0.0, 1.0)


def _decays_of(tree: Any, specs: Specs) -> Any:
    def decays(spec: ArraySpec, node: Any) -> Any:
        return jax.tree.map(lambda _: spec.decay, node)  # a node that muon masked has no leaves, and stays what it is

    return jax.tree.map(decays, specs, tree, is_leaf=is_spec)


def round_weights(weights: Any, specs: Specs, key: jax.Array) -> Any:
    """A tree of updated weights as the types of their specs.

    A float32 becomes one of the two nearest bfloat16s, the likelier the nearer it is, so that it stays the same on
    average. Rounded to the nearest, a bfloat16 would lose each update that is less than about 1/512 of it (Zamirai et
    al. 2020, "Revisiting BFloat16 Training", arXiv 2010.06192). Each element draws from the key, the name of its
    layer's array and its place there, so that meshes and stacks of layers round alike.
    """
    keys = jax.tree.unflatten(jax.tree.structure(specs, is_leaf=is_spec), array_keys(specs, key))

    def rounded(spec: ArraySpec, weight: Any, key: jax.Array) -> Any:
        if weight is None or weight.dtype == spec.dtype:
            return weight
        if spec.dtype != jnp.bfloat16:
            return weight.astype(spec.dtype)
        if key.ndim == 0:
            return round_stochastically(weight, jax.random.bits(key, weight.shape, jnp.uint16))
        bits = jax.vmap(lambda one: jax.random.bits(one, weight.shape[1:], jnp.uint16))(key)
        return round_stochastically(weight, bits)

    if all(spec.dtype == wide_dtype(spec.dtype) for spec in jax.tree.leaves(specs, is_leaf=is_spec)):
        return weights
    return jax.tree.map(rounded, specs, weights, keys, is_leaf=is_spec)


def round_stochastically(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Float32 as bfloat16: up if the sum of the bits that it loses and 16 random `bits` carries."""
    carried = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits.astype(jnp.uint32)
    kept = jax.lax.bitcast_convert_type((carried >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), kept, x.astype(jnp.bfloat16))
