"""The settings that a sweep tries: `--set KEY=A,B,C`, `--set KEY=LOW..HIGH` and `--set KEY=LOW..HIGH:log`.

A sampler draws the setting of a trial: a function of the design, the setting's number and, for TPE, the results so far.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from aifx.config.best_by import Direction
from aifx.config.config import Config
from aifx.config.toml import literal
from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.extras import install_command
from aifx.core.project import Project
from aifx.kinds import load_config

SEED = "train.seed"
RANKING = ("checkpoint.best_by", "eval.gates")
"""Keys that decide what ranks the trials, and so are the same in all of them."""

_NUMBER = r"[+-]?\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})(:log)?\s*")
_OPENING, _CLOSING, _QUOTES = "[{", "]}", "\"'"

Values: TypeAlias = Mapping[str, Any]
"""A value per key ("train.seed"), as JSON has it."""


@dataclass(frozen=True)
class Choices:
    """One of a few values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included: a whole one if both are. `is_log` spreads its logarithm evenly."""

    low: int | float
    high: int | float
    is_log: bool

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Space:
    """The settings that a sweep varies.

    Attributes:
        swept: by key, in the order given, without `train.seed`.
        seeds: each setting is trained with each of these values of `train.seed`; empty if it is not swept.
        fixed: values that all trials share and that aifx.toml does not have.
    """

    swept: Mapping[str, Choices | Range]
    seeds: tuple[int, ...]
    fixed: Values

    @property
    def keys(self) -> list[str]:
        """The keys that differ between trials."""
        return [*self.swept, *([SEED] if self.seeds else [])]


def overrides(values: Values) -> list[str]:
    """The values as `--set` takes them."""
    return [f"{key}={literal(value)}" for key, value in values.items()]


def parse_space(project: Project, texts: Sequence[str], file: Path | None) -> Space:
    """The space of `--set` texts. Raises UsageError, and ConfigError for a value that its key cannot have.

    Args:
        file: the configuration instead of the project's aifx.toml.
    """
    given: dict[str, str] = {}
    first: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if name in given:
            raise UsageError(f"{name} is given twice", "one --set lists all of its values", f"--set {name}=A,B,C")
        given[name] = value
        first[name] = f"{name}={_pieces(value)[0]}" if equals else text

    def typed(name: str, piece: str) -> Any:
        one = {**first, name: f"{name}={piece}"}
        return value_of(load_config(project, list(one.values()), file=file), name)

    load_config(project, list(first.values()), file=file)  # all mistakes of the keys at once
    swept: dict[str, Choices | Range] = {}
    fixed = {}
    for name, text in given.items():
        values = tuple(typed(name, piece) for piece in _pieces(text))
        if (match := _RANGE.fullmatch(text)) is not None:
            swept[name] = _range(name, text, values, is_log=match[3] is not None)
        elif len(values) == 1:
            fixed[name] = values[0]
        else:
            swept[name] = _choices(name, values)
    return _space(swept, fixed)


def value_of(config: Config, key: str) -> Any:
    """The value of `section.key`, as JSON has it."""
    section, _, name = key.partition(".")
    return config.values()[section][name]


def _space(swept: dict[str, Choices | Range], fixed: Values) -> Space:
    if name := next((name for name in RANKING if name in swept), None):
        why = "it decides what ranks the trials, so all of them need the same"
        raise UsageError(f"{name} cannot be swept", why, f"--set {name}=VALUE    (one value)")
    seeds = swept.pop(SEED, None)
    if isinstance(seeds, Range):
        why = "each setting is trained with each seed, so the seeds are listed"
        raise UsageError(f"{SEED}={seeds.low}..{seeds.high} is a range", why, f"--set {SEED}=0,1,2")
    if not swept and seeds is None:
        why = "a setting has several values, with commas between them, or a range"
        raise UsageError("there is nothing to sweep", why, "aifx sweep --set optimizer.learning_rate=1e-3,3e-3")
    return Space(swept, seeds.values if seeds is not None else (), fixed)


def _pieces(text: str) -> list[str]:
    """The values between commas, but not those within brackets and quotes; the two ends of a range."""
    if (match := _RANGE.fullmatch(text)) is not None:
        return [match[1], match[2]]
    cuts, depth, quote = [-1], 0, ""
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == "," and depth == 0:
            cuts.append(at)
    return [text[start + 1 : end].strip() for start, end in pairwise([*cuts, len(text)])]


def _range(name: str, text: str, ends: Sequence[Any], *, is_log: bool) -> Range:
    low, high = ends
    if not low < high:
        raise UsageError(f"{name}={text} is empty", "a range goes from the lower to the higher number", f"{name}=1..10")
    if is_log and low <= 0:
        raise UsageError(f"{name}={text} has no logarithm", "both ends must be above 0", f"{name}={low}..{high}")
    return Range(low, high, is_log)


def _choices(name: str, values: Iterable[Any]) -> Choices:
    listed: list[Any] = []
    for value in values:
        if value in listed:
            why = "each value makes trials of its own; for repetitions, sweep the seed"
            raise UsageError(f"{name} lists {literal(value)} twice", why, f"--set {SEED}=0,1,2")
        listed.append(value)
    return Choices(tuple(listed))


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
    """The number of settings in the grid; None if a range is among them."""
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
