"""Classification: one label per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aifx.data.spec import DataSpec
from aifx.models.base import Model
from aifx.objectives.base import DeviceBatch, Objective, Predictions, Sums, Totals, mean, outputs
from aifx.objectives.checks import check_targets, misfit
from aifx.parallel.context import ForwardContext
from aifx.specs import Params


class Classification(Objective):
    """Cross-entropy of `targets` int32 `[rows]`. Reports accuracy, a report by class and the confusion matrix."""

    def check_data(self, data: DataSpec) -> None:
        if not data.classes:
            raise misfit("classification needs data with classes", "its DataSpec names none")
        check_targets(data, "classification needs one label per example", "iu", 1)

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """Over examples: "loss" in nats, "accuracy", and when evaluating "confusion" `[true, predicted]`."""
        logits = outputs(model, params, batch, ctx)
        labels, weights = batch["targets"], batch["weights"]
        if logits.shape[:-1] != labels.shape:
            why = f"the outputs are {list(logits.shape)}, the labels {list(labels.shape)}"
            raise misfit("classification needs one row of outputs per label", why)
        predicted = jnp.argmax(logits, axis=-1)
        weight = weights.sum()
        sums = {
            "loss": ((cross_entropy(logits, labels) * weights).sum(), weight),
            "accuracy": (((predicted == labels) * weights).sum(), weight),
        }
        if not ctx.training:
            sums["confusion"] = (confusion_matrix(labels, predicted, weights, logits.shape[-1]), weight)
        return sums

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """loss [nats], accuracy; if confusion was summed also macro_f1, examples, per_class and confusion."""
        report: dict[str, Any] = {name: mean(totals[name]) for name in ("loss", "accuracy")}
        if "confusion" in totals:
            report |= class_report(np.asarray(totals["confusion"][0], np.float64), data.classes)
        return report

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """For each example: "probabilities" of the classes, float32 `[examples, classes]`."""
        return {"probabilities": jax.nn.softmax(outputs(model, params, batch, ctx), axis=-1)}

    def decode(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
        """The likeliest class as "label", its "probability", and the "probabilities" of all classes."""
        (values,) = predictions["probabilities"]
        best = int(values.argmax())
        by_class = dict(zip(data.classes, values.tolist(), strict=True))
        return {"label": data.classes[best], "probability": float(values[best]), "probabilities": by_class}


def class_report(confusion: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Precision, recall and F1 of each class from counts `[true, predicted]`; 0 where a class never occurs."""
    hits, present, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = (
        np.divide(part, whole, out=np.zeros_like(hits), where=whole > 0).tolist()
        for part, whole in ((hits, predicted), (hits, present), (2 * hits, present + predicted))
    )
    per_class = {
        name: {"precision": p, "recall": r, "f1": f, "examples": n}
        for name, p, r, f, n in zip(classes, precision, recall, f1, present.round().astype(int).tolist(), strict=True)
    }
    return {
        "macro_f1": float(np.mean(f1)),
        "examples": round(float(confusion.sum())),
        "per_class": per_class,
        "confusion": confusion.round().astype(int).tolist(),
    }


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Negative log-likelihood in nats of `labels` [...] under `logits` [..., classes] of any dtype: float32 [...].

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
