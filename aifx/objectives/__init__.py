"""Objectives: losses, metrics and predictions. Importing this package imports no jax."""

from dataclasses import dataclass

from aifx.config.parts import Kind
from aifx.config.sections import ObjectiveSection
from aifx.objectives.sections import ClassificationSection, DpoSection, MultilabelSection, QuantileSection, SftSection


@dataclass(frozen=True)
class ObjectiveKind(Kind):
    """An objective, whose `make` is (section) -> Objective.

    Attributes:
        metrics: numbers that it reports of any data.
        class_metrics: numbers that it also reports of each class, as `per_class.NAME.METRIC`.
    """

    metrics: tuple[str, ...] = ()
    class_metrics: tuple[str, ...] = ()


CLASS_METRICS = ("precision", "recall", "f1", "auc", "average_precision", "examples")

OBJECTIVES = {
    "next-token": ObjectiveKind(
        "next-token",
        ObjectiveSection,
        "aifx.objectives.next_token:NextToken",
        metrics=("loss", "perplexity", "bits_per_byte", "tokens", "bytes"),
    ),
    "sft": ObjectiveKind(
        "sft",
        SftSection,
        "aifx.objectives.sft:SupervisedFineTuning",
        metrics=("loss", "perplexity", "tokens"),
    ),
    "dpo": ObjectiveKind(
        "dpo",
        DpoSection,
        "aifx.objectives.dpo:DirectPreference",
        metrics=("loss", "accuracy", "margin", "chosen", "rejected", "pairs"),
    ),
    "classification": ObjectiveKind(
        "classification",
        ClassificationSection,
        "aifx.objectives.classification:Classification",
        metrics=(
            "loss",
            "accuracy",
            "balanced_accuracy",
            "brier",
            "ece",
            "macro_f1",
            "auc",
            "average_precision",
            "examples",
        ),
        class_metrics=CLASS_METRICS,
    ),
    "multilabel": ObjectiveKind(
        "multilabel",
        MultilabelSection,
        "aifx.objectives.classification:Multilabel",
        metrics=(
            "loss",
            "exact_match",
            "balanced_accuracy",
            "brier",
            "ece",
            "macro_f1",
            "auc",
            "average_precision",
            "examples",
        ),
        class_metrics=(*CLASS_METRICS, "threshold"),
    ),
    "regression": ObjectiveKind(
        "regression",
        ObjectiveSection,
        "aifx.objectives.regression:Regression",
        metrics=("loss", "mean_absolute_error", "examples"),
    ),
    "quantile": ObjectiveKind(
        "quantile",
        QuantileSection,
        "aifx.objectives.quantile:Quantile",
        metrics=("loss", "mape", "mean_absolute_error", "coverage", "examples"),
    ),
}
"""By `objective.kind`."""
