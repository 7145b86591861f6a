"""`[model]` of small residual networks."""

from __future__ import annotations

from pydantic import Field

from aifx.config.sections import Fraction, ModelSection, PositiveInt


class ResnetSection(ModelSection):
    """A small residual convolutional network."""

    channels: tuple[PositiveInt, ...] = Field(
        (32, 64), description="Width of each stage; each stage halves the image.", min_length=1
    )
    blocks_per_stage: PositiveInt = Field(1, description="Residual blocks of a stage.")
    dropout: Fraction = Field(0.0, description="Share of features dropped before the output, in training.")
