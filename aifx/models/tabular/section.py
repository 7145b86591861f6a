"""`[model]` of networks for tables."""

from __future__ import annotations

from pydantic import Field

from aifx.config.sections import Fraction, ModelSection, PositiveInt


class TabularSection(ModelSection):
    """A multilayer perceptron over the columns of a table."""

    width: PositiveInt = Field(256, description="Units of a hidden layer.")
    num_layers: PositiveInt = Field(3, description="Hidden layers.")
    embed_dim: PositiveInt = Field(16, description="Numbers that a column becomes before the first layer.")
    dropout: Fraction = Field(0.1, description="Share of units dropped after each hidden layer, in training.")
