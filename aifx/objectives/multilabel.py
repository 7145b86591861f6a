"""Classification with any number of labels per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, logit

from aifx.data.spec import DataSpec
from aifx.models.base import Model
from aifx.objectives.base import DeviceBatch, Predictions, Rows, Sums, Totals, WorstError, largest, mean, outputs
from aifx.objectives.checks import check_targets, misfit
from aifx.objectives.classification import Classifier, class_report
from aifx.objectives.ranking import mean_of_defined, rank_classes
from aifx.objectives.sections import MultilabelSection
from aifx.parallel.context import ForwardContext
from aifx.specs import Params

NEUTRAL = 0.5
"""The threshold of a class for which none was chosen."""


class Multilabel(Classifier):
    """Binary cross-entropy of `targets` `[rows, classes]`: 1 for each class of an example, 0 for the others.

    The loss of an example is the mean over the classes.
    """

    section_type = MultilabelSection

    def check_data(self, data: DataSpec) -> None:
        if not data.classes:
            raise misfit("multilabel classification needs data with classes", "its DataSpec names none")
        what = f"multilabel classification needs {len(data.classes)} targets per example, one for each class"
        check_targets(data, what, "biuf", len(data.classes))

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """Over examples: "loss" in nats, and when evaluating the rows "logits" and "labels", `[rows, classes]`."""
        logits, weights = outputs(model, params, batch, ctx).astype(jnp.float32), batch["weights"]
        if logits.size != batch["targets"].size:
            why = f"the outputs are {list(logits.shape)}, the targets {list(batch['targets'].shape)}"
            raise misfit("multilabel classification needs one output of the model per class", why)
        targets = batch["targets"].reshape(logits.shape).astype(jnp.float32)
        losses = jnp.maximum(logits, 0.0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        sums: Sums = {"loss": ((losses.mean(axis=-1) * weights).sum(), weights.sum())}
        if not ctx.training:
            sums |= {"logits": Rows(logits, weights), "labels": Rows(targets > 0.5, weights)}
        return sums

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """loss [nats]; when evaluating also exact_match, the means over classes, and per_class."""
        report: dict[str, Any] = {"loss": mean(totals["loss"])}
        if "logits" not in totals:
            return report
        (logits, weights), (labels, _) = totals["logits"], totals["labels"]
        weights, labels, count = weights.astype(np.float64), labels.astype(bool), len(data.classes)
        ranked = rank_classes(
            lambda c: expit(logits[:, c].astype(np.float64)),
            lambda c: labels[:, c],
            weights,
            count,
            self.section.threshold_by,
        )
        thresholds = self._in_use(data.classes, ranked.thresholds, NEUTRAL)
        if thresholds is None:
            thresholds = np.full(count, NEUTRAL)
        predicted = logits >= logit(thresholds)
        hits, present, named = (weights @ which for which in (labels & predicted, labels, predicted))
        total = weights.sum()
        absent, rejected = total - present, total - present - named + hits
        both = (present > 0) & (absent > 0)
        balanced = (hits[both] / present[both] + rejected[both] / absent[both]) / 2
        return report | {
            "exact_match": mean((weights @ (labels == predicted).all(axis=-1), total)),
            "balanced_accuracy": mean_of_defined(balanced),
            **class_report(hits, present, named, ranked, data.classes, thresholds),
            "examples": round(float(total)),
        }

    def decides_by(self, data: DataSpec) -> dict[str, float]:
        return dict(zip(data.classes, self._thresholds_of(data).tolist(), strict=True))

    def combine(self, outputs: jax.Array) -> jax.Array:
        """The logits of the mean probabilities."""
        present, absent = (jax.nn.logsumexp(jax.nn.log_sigmoid(logits), axis=0) for logits in (outputs, -outputs))
        return present - absent

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """For each example: "probabilities" of the classes, float32 `[examples, classes]`."""
        return {"probabilities": jax.nn.sigmoid(outputs(model, params, batch, ctx))}

    def decode(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
        """The predicted classes as "labels", and the "probabilities" of all classes."""
        (values,) = predictions["probabilities"]
        labels = _names(values >= self._thresholds_of(data), data)
        return {"labels": labels, "probabilities": dict(zip(data.classes, values.tolist(), strict=True))}

    def worst_errors(self, totals: Totals, data: DataSpec, count: int) -> list[WorstError]:
        (logits, weights), (labels, _) = totals["logits"], totals["labels"]
        probabilities = expit(logits.astype(np.float64))
        predicted = probabilities >= self._thresholds_of(data)
        farthest = np.where(predicted != labels, np.abs(labels - probabilities), 0.0).max(axis=-1, initial=0.0)
        return [
            WorstError(row, {"is": _names(labels[row], data), "predicted": _names(predicted[row], data)})
            for row in largest(np.where(weights > 0, farthest, 0.0), count)
        ]

    def _thresholds_of(self, data: DataSpec) -> np.ndarray:
        """The fixed threshold of each class."""
        fixed = self._fixed(data.classes, NEUTRAL)
        return np.full(len(data.classes), NEUTRAL) if fixed is None else fixed


def _names(is_chosen: np.ndarray, data: DataSpec) -> list[str]:
    return [name for name, chosen in zip(data.classes, is_chosen.tolist(), strict=True) if chosen]
