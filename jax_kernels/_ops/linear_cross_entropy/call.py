"""A call of linear_cross_entropy as its implementations see it: everything but the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jax_kernels.implementations import Config
from jax_kernels.op import TrainingProgram, Work


@dataclass(frozen=True)
class Call:
    """Shapes and options of a call, known before the program runs."""

    batch_fields: ClassVar = ("tokens",)

    tokens: int
    embed: int
    vocab: int
    dtype: str
    z_loss: float
    label_smoothing: float
    ignore_label: int | None
    logit_softcap: float | None
    reduction: Literal["none", "sum"]

    def __str__(self) -> str:
        """In the words of a table: "2048 tokens x 768 x 50257, sum, float32"."""
        options = {
            f"z-loss {self.z_loss}": self.z_loss != 0.0,
            f"smoothing {self.label_smoothing}": self.label_smoothing != 0.0,
            f"ignoring {self.ignore_label}": self.ignore_label is not None,
            f"soft cap {self.logit_softcap}": self.logit_softcap is not None,
            "sum": self.reduction == "sum",
        }
        words = [word for word, holds in options.items() if holds]
        return ", ".join([f"{self.tokens} tokens x {self.embed} x {self.vocab}", *words, self.dtype])


def losses(call: Call, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss of each token from its capped logits `[tokens, vocab]`, and their log-sum-exp, both `[tokens]`."""
    lse = jax.nn.logsumexp(logits, axis=-1)
    label_logit = jnp.take_along_axis(logits, inside(call, labels)[:, None], axis=-1)[:, 0]
    return loss_of(call, labels, lse, label_logit, jnp.sum(logits, axis=-1) if call.label_smoothing else None), lse


def loss_of(
    call: Call, labels: jax.Array, lse: jax.Array, label_logit: jax.Array, logit_sum: jax.Array | None
) -> jax.Array:
    """The loss of each token from the log-sum-exp of its logits, its label's and, for smoothing, their sum."""
    expected = (1.0 - call.label_smoothing) * label_logit
    if logit_sum is not None:
        expected += (call.label_smoothing / call.vocab) * logit_sum
    loss = lse - expected
    if call.z_loss:
        loss += call.z_loss * jnp.square(lse)
    return jnp.where(counts(call, labels), loss, 0.0)


def inside(call: Call, labels: jax.Array) -> jax.Array:
    """Labels in the vocabulary, int32. Of others, the loss counts for nothing or is marked."""
    return jnp.clip(labels.astype(jnp.int32), 0, call.vocab - 1)


def counts(call: Call, labels: jax.Array) -> jax.Array:
    """Which tokens count."""
    return jnp.ones(labels.shape, bool) if call.ignore_label is None else labels != call.ignore_label


def outside(call: Call, labels: jax.Array) -> jax.Array:
    """Which tokens count and have a label outside the vocabulary."""
    largest = min(call.vocab - 1, int(jnp.iinfo(labels.dtype).max))
    return ((labels < 0) | (labels > largest)) & counts(call, labels)


@jax.custom_vjp
def marked(loss: jax.Array, is_wrong: jax.Array) -> jax.Array:
    """The loss, NaN where it is wrong, and so is its gradient. Nothing is asked of a loss whose cotangent is 0."""
    return jnp.where(is_wrong, jnp.nan, loss)


def _mark_forward(loss: jax.Array, is_wrong: jax.Array) -> tuple[jax.Array, jax.Array]:
    return marked(loss, is_wrong), is_wrong


def _mark_backward(is_wrong: jax.Array, d_loss: jax.Array) -> tuple[jax.Array, None]:
    return jnp.where(is_wrong & (d_loss != 0.0), jnp.nan, d_loss), None


marked.defvjp(_mark_forward, _mark_backward)


def workload(
    call: Call, run: Callable[..., Any], config: Config
) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    """Loss and gradients of an implementation, as training runs them, and what makes arrays of the call's shapes."""

    def arguments() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0), 4)
        x = jax.random.normal(keys[0], (call.tokens, call.embed), call.dtype)
        weight = jax.random.normal(keys[1], (call.embed, call.vocab), call.dtype) / call.embed**0.5
        labels = jax.random.randint(keys[2], (call.tokens,), 0, call.vocab)
        d_loss = jax.random.uniform(keys[3], (call.tokens,) if call.reduction == "none" else ())
        return (x, weight.astype(call.dtype)), (labels,), d_loss

    return TrainingProgram(partial(run, call, config)), arguments


def work(call: Call) -> Work:
    """Three products of the size of the projection: the logits, and both gradients."""
    product = 2 * call.tokens * call.embed * call.vocab
    elements = 2 * (call.tokens * call.embed + call.embed * call.vocab)
    return Work(3 * product, elements * jnp.dtype(call.dtype).itemsize)
