"""Projection to the vocabulary and cross-entropy in one: the logits `[tokens, vocab]` are never held."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from jax_kernels._ops.linear_cross_entropy import reference, xla
from jax_kernels._ops.linear_cross_entropy.call import Call, counts, marked, outside, work, workload
from jax_kernels.dispatch import run
from jax_kernels.implementations import Implementation, kernel_implementation
from jax_kernels.op import Op

__all__ = ["LINEAR_CROSS_ENTROPY", "Implementation", "linear_cross_entropy"]

ImplementationName: TypeAlias = Literal["auto", "reference", "xla", "pallas_triton", "pallas_tpu"]

KERNELS = ("pallas_triton", "pallas_tpu")

LINEAR_CROSS_ENTROPY = Op(
    "linear_cross_entropy",
    __name__,
    Call,
    {
        implementation.name: implementation
        for implementation in (
            Implementation("reference", reference.linear_cross_entropy),
            Implementation("xla", xla.linear_cross_entropy, configs=xla.configs),
            *(kernel_implementation(name, "linear_cross_entropy", f"{__name__}.{name}") for name in KERNELS),
        )
    },
    {"cpu": ("xla",), "gpu": ("pallas_triton", "xla"), "tpu": ("pallas_tpu", "xla")},
    workload,
    work,
)


def linear_cross_entropy(
    x: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_label: int | None = None,
    logit_softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "none",
    implementation: ImplementationName = "auto",
) -> jax.Array:
    """Cross-entropy of the logits x @ weight, x `[tokens, embed]` and weight `[embed, vocab]`, with labels `[tokens]`.

    A label outside the vocabulary, other than `ignore_label`, makes the token's loss NaN, and so the sum and the mean.
    Its gradients are NaN too: those of the weight and of the token's x, and with a sum or mean those of every token
    that counts. A loss whose cotangent is 0, for example since the caller masks it, adds nothing to the gradients.

    Args:
        z_loss: times the square of the log-sum-exp of the logits is added, which keeps it near 0.
        label_smoothing: this share of what is expected is spread evenly over the vocabulary.
        ignore_label: tokens of this label have no loss and do not count in the mean.
        logit_softcap: logits become cap * tanh(logit / cap).
        reduction: "none" for the loss of each token, "sum" and "mean" of those that count, 0 where none does. The sum
            asks the same of each token, so that its gradients are formed on the way forward.
        implementation: which implementation; "auto" takes the fastest for the device.

    Returns `[tokens]`, or a scalar; float32 or wider.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    _check_arrays(x, weight, labels)
    _check_options(z_loss, label_smoothing, logit_softcap, reduction)
    _check_ignored(ignore_label, labels)
    call = Call(
        tokens=x.shape[0],
        embed=x.shape[1],
        vocab=weight.shape[1],
        dtype=x.dtype.name,
        z_loss=float(z_loss),
        label_smoothing=float(label_smoothing),
        ignore_label=ignore_label,
        logit_softcap=None if logit_softcap is None else float(logit_softcap),
        reduction="none" if reduction == "none" else "sum",
    )
    loss: jax.Array = run(LINEAR_CROSS_ENTROPY, call, implementation, x, weight, labels)
    is_wrong = outside(call, labels)
    loss = marked(loss, is_wrong if reduction == "none" else jnp.any(is_wrong))
    return loss / jnp.maximum(jnp.sum(counts(call, labels)), 1) if reduction == "mean" else loss


def _check_arrays(x: jax.Array, weight: jax.Array, labels: jax.Array) -> None:
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected floating-point values [tokens, embed], got {x.dtype} {x.shape}")
    if weight.ndim != 2 or weight.shape[0] != x.shape[1] or weight.shape[1] == 0 or weight.dtype != x.dtype:
        raise ValueError(
            f"weight: expected {x.dtype} [{x.shape[1]}, vocab] to go with x, got {weight.dtype} {weight.shape}"
        )
    if labels.shape != x.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels: expected integers of shape {x.shape[:1]}, got {labels.dtype} {labels.shape}")


def _check_options(z_loss: float, label_smoothing: float, logit_softcap: float | None, reduction: str) -> None:
    if not (math.isfinite(z_loss) and z_loss >= 0.0):
        raise ValueError(f"z_loss: expected 0 or more, got {z_loss!r}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing: expected a share in [0, 1), got {label_smoothing!r}")
    if logit_softcap is not None and not (math.isfinite(logit_softcap) and logit_softcap > 0):
        raise ValueError(f"logit_softcap: expected a positive number or None, got {logit_softcap!r}")
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction: expected 'none', 'sum' or 'mean', got {reduction!r}")


def _check_ignored(ignore_label: int | None, labels: jax.Array) -> None:
    if ignore_label is None:
        return
    held = jnp.iinfo(labels.dtype)
    if not isinstance(ignore_label, int) or not held.min <= ignore_label <= held.max:
        raise ValueError(f"ignore_label: expected an integer that {labels.dtype} holds or None, got {ignore_label!r}")
