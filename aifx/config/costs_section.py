"""`[costs]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aifx.config.sections import RESUME_SAFE, NonNegativeFloat, PositiveFloat, Section, setting


class CostsSection(Section):
    """Costs of training, for the bill of `aifx runs show`. Nothing is assumed for keys that are not set."""

    price_per_hour: NonNegativeFloat | None = setting(
        None, "Price of all machines of a run for an hour, in any currency.", RESUME_SAFE
    )
    power_w: PositiveFloat | None = setting(
        None, "Power of all devices of a run, if it cannot be measured; tagged as declared.", RESUME_SAFE
    )
    pue: Annotated[float, Field(ge=1.0)] | None = setting(
        None, "Power usage effectiveness of the data center: its energy per energy of its machines.", RESUME_SAFE
    )
    gco2e_per_kwh: NonNegativeFloat | None = setting(
        None, "Carbon intensity of the electricity, in grams of CO2 equivalent per kWh.", RESUME_SAFE
    )
    embodied_gco2e_per_hour: NonNegativeFloat | None = setting(
        None, "Embodied emissions of the machines, as their share of an hour of use.", RESUME_SAFE
    )
