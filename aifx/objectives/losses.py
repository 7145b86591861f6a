"""Losses as additive sums, in float32 whatever the model computed in."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Negative log-likelihood in nats of `labels` [...] under `logits` [..., classes]: float32 [...].

    The label's logit is picked by a masked sum rather than a gather: its gradient then fuses with the softmax's,
    where a gather's is a scatter into an array as large as the logits.
    """
    logits = logits.astype(jnp.float32)
    shifted = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    picked = jnp.where(classes == labels[..., None], shifted, 0.0).sum(axis=-1)
    return jnp.log(jnp.exp(shifted).sum(axis=-1)) - picked


def confusion_matrix(labels: jax.Array, predicted: jax.Array, weights: jax.Array, num_classes: int) -> jax.Array:
    """Weight of each (true, predicted) pair, float32 [classes, classes]; whole weights are exact up to 2**24."""
    true = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32) * weights[:, None]
    named = jax.nn.one_hot(predicted, num_classes, dtype=jnp.float32)
    return jnp.matmul(true.T, named, precision=jax.lax.Precision.HIGHEST)
