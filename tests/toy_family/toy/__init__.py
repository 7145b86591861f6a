"""A family, an objective and a kind of data that aifx does not know. The tests copy this package to a place where it
finds them. Importing it imports no jax."""

from __future__ import annotations

from pydantic import Field

from aifx.extend import (
    DataKind,
    DataSection,
    Family,
    Fraction,
    ModelSection,
    ObjectiveKind,
    ObjectiveSection,
    PositiveFloat,
    PositiveInt,
)


class ToySection(ModelSection):
    """A layer with a tanh."""

    width: PositiveInt = Field(8, description="Units of the layer.")
    dropout: Fraction = Field(0.0, description="Share of units dropped in training.")


class HuberSection(ObjectiveSection):
    """Huber's loss."""

    delta: PositiveFloat = Field(1.0, description="Errors beyond this count linearly.")


class WavesSection(DataSection):
    """Sine waves with noise."""

    examples: PositiveInt = Field(200, description="Waves to draw.")
    noise: Fraction = Field(0.1, description="Standard deviation of the noise.")


FAMILY = Family("toy", ToySection, f"{__name__}.model:Toy", {"toy-small": {"width": 4}})
OBJECTIVE = ObjectiveKind("huber", HuberSection, f"{__name__}.objective:Huber", metrics=("loss",))
DATA = DataKind("waves", WavesSection, f"{__name__}.data:Waves")
