"""What is learned from a batch: losses, metrics and predictions. Importing this package imports no jax."""

from aifx.config.kinds import ObjectiveKind
from aifx.config.sections import ObjectiveSection
from aifx.objectives.sections import QuantileSection

OBJECTIVES = {
    "next-token": ObjectiveKind(
        "next-token",
        ObjectiveSection,
        "aifx.objectives.next_token:NextToken",
        metrics=("loss", "perplexity", "bits_per_byte", "tokens", "bytes"),
    ),
    "classification": ObjectiveKind(
        "classification",
        ObjectiveSection,
        "aifx.objectives.classification:Classification",
        metrics=("loss", "accuracy", "macro_f1", "examples"),
        class_metrics=("precision", "recall", "f1", "examples"),
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
