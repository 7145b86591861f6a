"""Projection and loss as they are defined, logits and all: what every other implementation is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_kernels._ops.linear_cross_entropy.call import Call, losses
from jax_kernels.implementations import Config


def linear_cross_entropy(call: Call, config: Config, x: jax.Array, weight: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of each token `[tokens]`, float32 or wider, or their sum."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = x.astype(wide) @ weight.astype(wide)
    if call.logit_softcap is not None:
        logits = call.logit_softcap * jnp.tanh(logits / call.logit_softcap)
    loss, _ = losses(call, logits, labels)
    return loss if call.reduction == "none" else jnp.sum(loss)
