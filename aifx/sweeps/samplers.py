"""Which setting a trial tries: a function of the design, the setting's number, and for TPE of the results so far."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from aifx.config.best_by import Direction
from aifx.core.errors import EnvironmentFault
from aifx.core.extras import install_command
from aifx.sweeps.space import Choices, Range, Space, Values

Sampler: TypeAlias = Literal["grid", "random", "tpe"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)

RANDOM_FIRST = 10
"""Settings that TPE draws at random before it has results to go by: Optuna's `n_startup_trials`."""

DIGITS = 4
"""Significant digits of a number that is drawn, so that it can be read and typed."""


@dataclass(frozen=True)
class Outcome:
    """A setting with what its trials reached so far.

    Attributes:
        value: the mean over its seeds; None if there is none.
        is_cut: whether a trial of it was pruned, at `step`, or diverged.
        is_running: whether a trial of it has not ended.
    """

    values: Values
    value: float | None
    step: int
    is_cut: bool
    is_running: bool


def grid_size(space: Space) -> int | None:
    """How many settings the grid has; None if a range is among them."""
    domains = list(space.swept.values())
    if any(isinstance(domain, Range) for domain in domains):
        return None
    return math.prod(len(domain.values) for domain in domains if isinstance(domain, Choices))


def is_known_ahead(sampler: Sampler, index: int) -> bool:
    """Whether the setting of this index depends on no result."""
    return sampler != "tpe" or index < RANDOM_FIRST


def sample(
    space: Space, sampler: Sampler, seed: int, index: int, outcomes: Sequence[Outcome], direction: Direction
) -> dict[str, Any]:
    """The values of the swept keys in setting `index` (0 is the first).

    Args:
        outcomes: of the settings before it. Only TPE looks at them.

    Raises EnvironmentFault if TPE is asked for and Optuna is not installed.
    """
    if sampler == "grid":
        return _of_grid(space, index)
    if is_known_ahead(sampler, index):
        draw = random.Random(f"{seed}/{index}")
        return {key: _drawn(draw, domain) for key, domain in space.swept.items()}
    return _by_tpe(space, random.Random(f"{seed}/{index}").getrandbits(32), outcomes, direction)


def _of_grid(space: Space, index: int) -> dict[str, Any]:
    found = {}
    for key, domain in reversed(list(space.swept.items())):  # the last key changes fastest
        assert isinstance(domain, Choices)
        index, at = divmod(index, len(domain.values))
        found[key] = domain.values[at]
    return {key: found[key] for key in space.swept}


def _drawn(draw: random.Random, domain: Choices | Range) -> Any:
    if isinstance(domain, Choices):
        return draw.choice(domain.values)
    if domain.is_integer and not domain.is_log:
        return draw.randint(int(domain.low), int(domain.high))
    margin = 0.5 if domain.is_integer else 0.0  # so that the ends are as likely as what lies between
    low, high = domain.low - margin, domain.high + margin
    number = math.exp(draw.uniform(math.log(low), math.log(high))) if domain.is_log else draw.uniform(low, high)
    return _within(domain, number)


def _within(domain: Range, number: float) -> int | float:
    rounded = round(number) if domain.is_integer else float(f"{number:.{DIGITS}g}")
    return min(max(rounded, domain.low), domain.high)


def check_optuna() -> None:
    """Raise EnvironmentFault if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        why = f"it is part of Optuna, which is not installed ({error})"
        raise EnvironmentFault("--sampler tpe cannot be used", why, install_command("sweep")) from None


def _by_tpe(space: Space, seed: int, outcomes: Sequence[Outcome], direction: Direction) -> dict[str, Any]:
    """Ask Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), in a study made of the outcomes.

    The study lives as long as the question: nothing is to be kept, or to be repaired after a kill.
    """
    check_optuna()
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    def distribution(domain: Choices | Range) -> BaseDistribution:
        if isinstance(domain, Choices):  # by their places, since Optuna takes no lists as choices
            return CategoricalDistribution(range(len(domain.values)))
        if domain.is_integer:
            return IntDistribution(int(domain.low), int(domain.high), log=domain.is_log)
        return FloatDistribution(domain.low, domain.high, log=domain.is_log)

    optuna.logging.disable_default_handler()
    distributions = {key: distribution(domain) for key, domain in space.swept.items()}
    # Settings that are still running count as bad ones, so that trials at the same time differ.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)
    study = optuna.create_study(direction="maximize" if direction == "max" else "minimize", sampler=sampler)
    for one in outcomes:
        value, steps = one.value, {}
        if one.is_running:
            state, value = TrialState.RUNNING, None
        elif one.is_cut or value is None:
            state, steps, value = TrialState.PRUNED, {} if value is None else {one.step: value}, None
        else:
            state = TrialState.COMPLETE
        params = {
            key: domain.values.index(one.values[key]) if isinstance(domain, Choices) else one.values[key]
            for key, domain in space.swept.items()
        }
        study.add_trial(
            create_trial(
                state=state, params=params, distributions=distributions, value=value, intermediate_values=steps
            )
        )
    found = study.ask(distributions).params
    return {
        key: domain.values[found[key]] if isinstance(domain, Choices) else _within(domain, found[key])
        for key, domain in space.swept.items()
    }
