"""`[objective]` of the objectives that come with aifx. Imports no jax."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from aifx.config.sections import ObjectiveSection

Probability = Annotated[float, Field(gt=0.0, lt=1.0)]


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
