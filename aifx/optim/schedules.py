"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from aifx.config.sections import ScheduleSection


def make_schedule(section: ScheduleSection, num_steps: int) -> optax.Schedule:
    """Update count (from 0) -> share of the peak in [0, 1].

    Linear warm-up from 0, then:
        cosine: half a cosine down to `final_fraction` at the last update.
        wsd: stable at 1, then linear down to `final_fraction` over the last `decay_fraction` of the run
            (warm-up-stable-decay, Hu et al. 2024, arXiv:2404.06395).
        constant: 1.

    Update i uses schedule(i + 1): the first update of a warm-up is not wasted on a rate of 0, and the last one has the
    final rate. In a run too short for both, the warm-up gives way to the decay, so that a project's settings also hold
    for a short trial of it.
    """
    decay = round(section.decay_fraction * num_steps) if section.kind == "wsd" else 0
    warmup = min(section.warmup_steps, num_steps - decay)
    parts: list[optax.Schedule] = [optax.linear_schedule(0.0, 1.0, max(warmup, 1))]
    boundaries = [warmup]
    match section.kind:
        case "constant":
            parts.append(optax.constant_schedule(1.0))
        case "cosine":
            parts.append(optax.cosine_decay_schedule(1.0, max(num_steps - warmup, 1), alpha=section.final_fraction))
        case "wsd":
            parts += [optax.constant_schedule(1.0), optax.linear_schedule(1.0, section.final_fraction, max(decay, 1))]
            boundaries.append(num_steps - decay)
    joined = optax.join_schedules(parts, boundaries)
    # Compiled, the last of a linear decay to 0 is rounded to below it.
    return lambda count: jnp.clip(joined(count + 1), 0.0, 1.0)
