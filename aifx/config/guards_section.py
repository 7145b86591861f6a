"""`[guards]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aifx.config.sections import (
    RESUME_SAFE,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    setting,
)


class GuardsSection(Section):
    """The reactions of a run to steps that went wrong: docs/guards.md."""

    non_finite: Literal["skip", "roll_back", "stop"] = setting(
        "skip",
        "Steps whose loss or gradient is not finite. skip: their updates are not applied; roll_back: and after "
        "max_in_a_row of them the run goes back and leaves out their batches; stop: the first ends the run.",
        RESUME_SAFE,
    )
    max_in_a_row: PositiveInt = setting(3, "So many skipped steps in a row end the run, or roll it back.", RESUME_SAFE)
    spike: Literal["off", "warn", "roll_back"] = setting(
        "warn",
        "A loss far above the last ones. roll_back: the run goes back to before it, and leaves out its batch.",
        RESUME_SAFE,
    )
    spike_score: PositiveFloat = setting(
        10.0, "Robust standard deviations above the median that make a spike.", RESUME_SAFE
    )
    spike_window: Annotated[int, Field(ge=8, le=10_000)] = setting(
        128, "Steps whose losses a loss is compared with; earlier steps are not judged.", RESUME_SAFE
    )
    max_rollbacks: NonNegativeInt = setting(5, "How often a run may go back.", RESUME_SAFE)
    verify_every: NonNegativeInt = setting(
        0, "Compute one step in so many twice, and compare the results bit for bit; 0 never does.", RESUME_SAFE
    )
    step_timeout_s: NonNegativeFloat = setting(
        600.0,
        "A step, or the wait for its batch, hangs if it takes so long and 20 times the usual step; 0 sets no limit.",
        RESUME_SAFE,
    )
    hang_timeout_s: NonNegativeFloat = setting(
        3600.0,
        "The same for a start, compilation, evaluation or checkpoint that makes no progress.",
        RESUME_SAFE,
    )
