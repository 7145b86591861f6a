"""`[model]` of the network for series."""

from __future__ import annotations

from pydantic import Field

from aifx.config.sections import Fraction, ModelSection, PositiveInt


class SeriesModelSection(ModelSection):
    """N-HiTS over what the calendar leaves of a series."""

    embed_dim: PositiveInt = Field(32, description="Width of the features of a step of time.")
    width: PositiveInt = Field(128, description="Units of each hidden layer of a block.")
    pooling: tuple[PositiveInt, ...] = Field(
        (8, 4, 1), description="Steps that each block averages; it forecasts as coarsely.", min_length=1
    )
    dropout: Fraction = Field(0.1, description="Share of a block's features dropped in training.")
