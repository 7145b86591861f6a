"""Classification: one label per example, or any number of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, log_softmax, logit, logsumexp, softmax

from aifx.config.sections import Section
from aifx.data.columns import as_text, is_missing
from aifx.data.spec import DataSpec
from aifx.models.base import Model
from aifx.objectives.base import (
    DeviceBatch,
    Objective,
    Predictions,
    Ratio,
    Rows,
    RowSums,
    Sums,
    Totals,
    WorstError,
    largest,
    mean,
    outputs,
)
from aifx.objectives.calibration import brier_scores, calibration
from aifx.objectives.checks import check_targets, misfit
from aifx.objectives.ranking import ClassRankings, choose_thresholds, mean_of_defined, rank_classes
from aifx.objectives.sections import ClassificationSection, MultilabelSection
from aifx.parallel.context import ForwardContext
from aifx.specs import Params


class Classifier(Objective):
    """The base of classifiers: a threshold for each class, chosen on the validation split and fixed from then on."""

    section_type: ClassVar[type[ClassificationSection | MultilabelSection]]

    def __init__(self, section: Section | None = None) -> None:
        self.section = section if isinstance(section, self.section_type) else self.section_type()
        self._thresholds: Mapping[str, float] | None = None  # None: those that are best for the split at hand

    def thresholds(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        reports = metrics.get("per_class", {}).items()
        return {name: report["threshold"] for name, report in reports if "threshold" in report}

    def with_thresholds(self, thresholds: Mapping[str, float]) -> Self:
        changed = copy.copy(self)
        changed._thresholds = dict(thresholds)
        return changed

    def row_sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> RowSums:
        return {name: pair for name, pair in self.sums(model, params, batch, ctx).items() if isinstance(pair, Rows)}

    def _in_use(self, classes: tuple[str, ...], chosen: np.ndarray, neutral: float) -> np.ndarray | None:
        """The threshold of each class: the fixed ones, otherwise those `chosen` (NaN for none); `neutral` without.

        None if there are none, and the likeliest class is to be predicted.
        """
        if self.section.threshold_by == "none":
            return None
        if self._thresholds is not None:
            return np.array([self._thresholds.get(name, neutral) for name in classes])
        return np.where(np.isnan(chosen), neutral, chosen)

    def _fixed(self, classes: tuple[str, ...], neutral: float) -> np.ndarray | None:
        """`_in_use` where there is no split to choose by."""
        return self._in_use(classes, np.full(len(classes), np.nan), neutral)


class Classification(Classifier):
    """Cross-entropy of `targets` int32 `[rows]`. Reports accuracy, a report by class and the confusion matrix."""

    section_type = ClassificationSection
    section: ClassificationSection

    def check_data(self, data: DataSpec) -> None:
        if not data.classes:
            raise misfit("classification needs data with classes", "its DataSpec names none")
        check_targets(data, "classification needs one label per example", "iu", 1)

    def sums(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
        """Over examples: "loss" in nats, and when evaluating the rows "logits" `[rows, classes]` and "labels"."""
        logits = outputs(model, params, batch, ctx)
        labels, weights = batch["targets"], batch["weights"]
        if logits.shape[:-1] != labels.shape:
            why = f"the outputs are {list(logits.shape)}, the labels {list(labels.shape)}"
            raise misfit("classification needs one row of outputs per label", why)
        smoothing = self.section.label_smoothing if ctx.training else 0.0
        sums: Sums = {"loss": ((cross_entropy(logits, labels, smoothing) * weights).sum(), weights.sum())}
        if not ctx.training:
            sums |= {"logits": Rows(logits.astype(jnp.float32), weights), "labels": Rows(labels, weights)}
        return sums

    def metrics(self, totals: Totals, data: DataSpec) -> dict[str, Any]:
        """loss [nats]; when evaluating also accuracy, the means over classes, calibration, per_class and confusion."""
        report: dict[str, Any] = {"loss": mean(totals["loss"])}
        if "logits" not in totals:
            return report
        (logits, weights), (labels, _) = totals["logits"], totals["labels"]
        count = len(data.classes)
        with np.errstate(invalid="ignore"):  # of a model that diverged
            normalizer = logsumexp(logits.astype(np.float64), axis=-1)
            ranked = rank_classes(
                lambda c: np.exp(logits[:, c] - normalizer),
                lambda c: labels == c,
                weights,
                count,
                "none",
            )
            brier = self.ratios(totals, data)["brier"]
        chosen = np.full(count, np.nan)
        if self.section.threshold_by != "none" and self._thresholds is None:
            chosen = choose_thresholds(logits, labels, weights, self.section.threshold_by)
        thresholds = self._in_use(data.classes, chosen, 1 / count)
        predicted = likeliest(logits, thresholds)
        confidence = np.exp(logits[np.arange(len(labels)), predicted] - normalizer)
        confusion = np.zeros((count, count))
        np.add.at(confusion, (labels, predicted), weights.astype(np.float64))
        hits, present, named = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        recall = np.divide(hits, present, out=np.full(count, np.nan), where=present > 0)
        return report | {
            "accuracy": mean((hits.sum(), present.sum())),
            "balanced_accuracy": mean_of_defined(recall),
            "brier": mean((brier.totals.sum(), brier.weights.sum())),
            **calibration(confidence, predicted == labels, weights),
            **class_report(hits, present, named, ranked, data.classes, thresholds),
            "examples": round(float(present.sum())),
            "confusion": confusion.round().astype(int).tolist(),
        }

    def ratios(self, sums: RowSums, data: DataSpec) -> dict[str, Ratio]:
        """loss, accuracy, by fixed thresholds if there are any, and brier."""
        (logits, weights), (labels, _) = sums["logits"], sums["labels"]
        weights, probabilities = weights.astype(np.float64), log_softmax(logits.astype(np.float64), axis=-1)
        rows = np.arange(len(labels))
        predicted = likeliest(logits, self._fixed(data.classes, 1 / len(data.classes)))
        return {
            "loss": Ratio(-probabilities[rows, labels] * weights, weights),
            "accuracy": Ratio((predicted == labels) * weights, weights, "max"),
            "brier": Ratio(brier_scores(np.exp(probabilities), labels) * weights, weights),
        }

    def decides_by(self, data: DataSpec) -> dict[str, float]:
        fixed = self._fixed(data.classes, 1 / len(data.classes))
        return {} if fixed is None else dict(zip(data.classes, fixed.tolist(), strict=True))

    def combine(self, outputs: jax.Array) -> jax.Array:
        """The logarithms of the mean probabilities."""
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0) - math.log(len(outputs))

    def predictions(self, model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Predictions:
        """For each example: "probabilities" of the classes, float32 `[examples, classes]`."""
        return {"probabilities": jax.nn.softmax(outputs(model, params, batch, ctx), axis=-1)}

    def decode(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
        """The predicted class as "label", its "probability", and the "probabilities" of all classes."""
        (found,) = self.decode_rows(predictions, data)
        return found

    def decode_rows(self, predictions: Mapping[str, np.ndarray], data: DataSpec) -> list[dict[str, Any]]:
        values, classes = predictions["probabilities"], data.classes
        thresholds = self._fixed(classes, 1 / len(classes))
        best = (values if thresholds is None else values / thresholds).argmax(axis=-1).tolist()
        return [
            {"label": classes[at], "probability": row[at], "probabilities": dict(zip(classes, row, strict=True))}
            for at, row in zip(best, values.tolist(), strict=True)
        ]

    def outcome_sums(
        self, predictions: Sequence[Mapping[str, Any]], outcomes: Sequence[Any], data: DataSpec
    ) -> RowSums:
        numbers = {name: number for number, name in enumerate(data.classes)}
        labels = np.array([numbers.get("" if is_missing(one) else as_text(one), -1) for one in outcomes], np.int64)
        probabilities = [list(one["probabilities"].values()) for one in predictions]
        logits = np.log(np.maximum(np.array(probabilities, np.float64), np.finfo(np.float32).tiny))
        weights, labels = (labels >= 0).astype(np.float64), np.maximum(labels, 0)
        sums: RowSums = {"logits": (logits, weights), "labels": (labels, weights)}
        loss = self.ratios(sums, data)["loss"]
        return {name: Rows(*pair) for name, pair in sums.items()} | {"loss": (loss.totals, loss.weights)}

    def worst_errors(self, totals: Totals, data: DataSpec, count: int) -> list[WorstError]:
        """As `Objective.worst_errors`; behind each class is the probability that the model gave it."""
        (logits, weights), (labels, _) = totals["logits"], totals["labels"]
        predicted = likeliest(logits, self._fixed(data.classes, 1 / len(data.classes)))
        probabilities = softmax(logits.astype(np.float64), axis=-1)
        rows = np.arange(len(labels))
        right = probabilities[rows, labels]
        return [
            WorstError(
                row,
                {
                    "is": f"{data.classes[labels[row]]}, p = {right[row]:.4f}",
                    "predicted": f"{data.classes[predicted[row]]}, p = {probabilities[row, predicted[row]]:.4f}",
                },
            )
            for row in largest(np.where((weights > 0) & (predicted != labels), 1 - right, 0.0), count)
        ]


def likeliest(logits: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
    """The class with the largest probability / threshold, int `[examples]`, as mlr3's `set_threshold` decides."""
    return (logits if thresholds is None else logits - np.log(thresholds)).argmax(axis=-1)


def class_report(
    hits: np.ndarray,
    present: np.ndarray,
    named: np.ndarray,
    ranked: ClassRankings,
    classes: tuple[str, ...],
    thresholds: np.ndarray | None,
) -> dict[str, Any]:
    """The report of each class, and means over classes.

    Args:
        hits: the weight of the examples of each class that were predicted as it [classes].
        present, named: the weight of its examples, and of those that were predicted as it [classes].

    Precision, recall and F1 are 0 where a class never occurs. AUC and average precision are NaN there, and their means
    leave such classes out.
    """
    precision, recall, f1 = (
        np.divide(part, whole, out=np.zeros_like(hits), where=whole > 0)
        for part, whole in ((hits, named), (hits, present), (2 * hits, present + named))
    )
    columns = {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "auc": ranked.auc,
        "average_precision": ranked.average_precision,
        "examples": present.round().astype(int),
    }
    if thresholds is not None:
        columns["threshold"] = thresholds
    per_class = {
        name: dict(zip(columns, values, strict=True))
        for name, *values in zip(classes, *(column.tolist() for column in columns.values()), strict=True)
    }
    return {
        "macro_f1": float(np.mean(f1)),
        "auc": mean_of_defined(ranked.auc),
        "average_precision": mean_of_defined(ranked.average_precision),
        "per_class": per_class,
    }


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Negative log-likelihood in nats of `labels` [...] under `logits` [..., classes] of any dtype: float32 [...].

    Of each label, a share `smoothing` is spread evenly over all classes (Szegedy et al., arXiv 1512.00567, section 7).

    The label's logit is picked by a masked sum rather than a gather: its gradient then fuses with the softmax's,
    where a gather's is a scatter into an array as large as the logits.
    """
    logits = logits.astype(jnp.float32)
    shifted = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    picked = jnp.where(classes == labels[..., None], shifted, 0.0).sum(axis=-1)
    if smoothing:
        picked = (1 - smoothing) * picked + smoothing * shifted.mean(axis=-1)
    return jnp.log(jnp.exp(shifted).sum(axis=-1)) - picked


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
        """loss [nats]; when evaluating also exact_match, the means over classes, calibration, and per_class.

        Calibration is that of the probability of each class of each example.
        """
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
        with np.errstate(invalid="ignore"):  # of a model that diverged
            brier, sure = self.ratios(totals, data)["brier"], expit(logits.astype(np.float64))
        balanced = (hits[both] / present[both] + rejected[both] / absent[both]) / 2
        return report | {
            "exact_match": mean((weights @ (labels == predicted).all(axis=-1), total)),
            "balanced_accuracy": mean_of_defined(balanced),
            "brier": mean((brier.totals.sum(), brier.weights.sum())),
            **calibration(sure.ravel(), labels.ravel(), np.repeat(weights, count)),
            **class_report(hits, present, named, ranked, data.classes, thresholds),
            "examples": round(float(total)),
        }

    def ratios(self, sums: RowSums, data: DataSpec) -> dict[str, Ratio]:
        """loss, exact_match and brier: each the mean over the classes of an example, but for the match of all."""
        (logits, weights), (labels, _) = sums["logits"], sums["labels"]
        weights, logits = weights.astype(np.float64), logits.astype(np.float64)
        losses, probabilities = np.logaddexp(0.0, np.where(labels, -logits, logits)), expit(logits)
        is_right = (probabilities >= self._thresholds_of(data)) == labels
        return {
            "loss": Ratio(losses.mean(axis=-1) * weights, weights),
            "exact_match": Ratio(is_right.all(axis=-1) * weights, weights, "max"),
            "brier": Ratio(np.square(probabilities - labels).mean(axis=-1) * weights, weights),
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
