"""`[objective]` of the objectives that come with aifx. Imports no jax."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator

from aifx.config import Config
from aifx.config.sections import Conflict, Fraction, ObjectiveSection, PositiveFloat, setting

Probability = Annotated[float, Field(gt=0.0, lt=1.0)]

ThresholdBy: TypeAlias = Literal["none", "f1", "balanced_accuracy"]


class ClassificationSection(ObjectiveSection):
    """One label per example."""

    threshold_by: ThresholdBy = setting(
        "none",
        "Choose a threshold for each class on the validation split, by macro_f1 or balanced_accuracy. "
        "The class with the largest probability / threshold is predicted. none: the likeliest class.",
    )
    label_smoothing: Fraction = setting(
        0.0, "Share of each training label that is spread evenly over all classes, against overconfidence."
    )

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        if self.threshold_by != "none" and not config.train.validate_every:
            yield Conflict(
                ("objective.threshold_by", "train.validate_every"),
                f"objective.threshold_by = {self.threshold_by!r} needs validations, "
                "and train.validate_every = 0 makes none",
                "thresholds are chosen on the validation split",
            )


class SftSection(ObjectiveSection):
    """Tokens of a conversation that supervised fine-tuning trains."""

    loss_on: Literal["assistant", "completion", "all"] = setting(
        "assistant",
        "Tokens that are trained. assistant: its messages. completion: its last message, or the completion of a row. "
        "all: the whole conversation.",
    )


class DpoSection(ObjectiveSection):
    """Direct preference optimization (arXiv 2305.18290)."""

    beta: PositiveFloat = setting(0.1, "Reward of an answer for each nat by which its log-probability rises.")
    length_normalize: bool = setting(False, "Divide log-probabilities by the tokens of the answer.")


class MultilabelSection(ObjectiveSection):
    """Any number of classes per example."""

    threshold_by: ThresholdBy = setting(
        "f1",
        "Choose a threshold for each class on the validation split, by its F1 or its balanced accuracy. "
        "Classes at their threshold or above are predicted. none: 0.5 for each class.",
    )


class QuantileSection(ObjectiveSection):
    """Quantiles of each target."""

    quantiles: tuple[Probability, ...] = Field(
        (0.1, 0.5, 0.9), description="Quantiles in increasing order. 0.5, the median, is the forecast.", min_length=1
    )

    @field_validator("quantiles")
    @classmethod
    def _check_quantiles(cls, quantiles: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in pairwise(quantiles)):
            raise ValueError("they must increase")
        if 0.5 not in quantiles:
            raise ValueError("0.5 must be among them: errors are those of the median")
        return quantiles
