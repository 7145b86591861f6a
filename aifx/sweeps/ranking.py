"""The settings of a sweep by what they reached, beside what the seed alone changes, and what each key matters."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any, Literal, TypeAlias, cast

from aifx.config.best_by import Score, parse_best_by
from aifx.config.toml import literal, literal_key
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.core.statuses import Status
from aifx.runs.status import run_status
from aifx.sweeps.record import End, Sweep, Trial
from aifx.sweeps.space import SEED, Sampler, Values

Verdict: TypeAlias = Literal["best", "undecided", "worse", "unknown"]
"""A setting beside the best one. "unknown" if either has results of one seed only."""

CONFIDENCE = 0.95
BINS = 4
"""Groups of equal size that the values of a range are divided into for its importance."""

WHOLE = ("completed", "early_stopped")
"""The ends of trials that were trained to the end."""


@dataclass(frozen=True)
class SweepTrial:
    """A trial of a setting.

    Attributes:
        run: the run that it is.
        status: how it ended; that of its run if it has not.
        value: its best value, reached at `step`; that of a pruned trial up to its end.
    """

    number: int
    run: str
    seed: int | None
    status: End | Status
    value: float | None
    step: int | None
    error: str | None


@dataclass(frozen=True)
class RankedSetting:
    """A setting, with its trials.

    Attributes:
        rank: 1 is the best; null if no trial has ended with a value, or if one diverged or failed.
        values: by key, without the seed.
        value: the mean over its trials that have ended.
        std: the standard deviation over its seeds; null with fewer than two that were trained to the end.
        difference: from the value of the best setting.
        margin: the difference that the seed alone explains, at 95 %.
    """

    rank: int | None
    values: dict[str, Any]
    value: float | None
    std: float | None
    difference: float | None
    margin: float | None
    verdict: Verdict | None
    trials: list[SweepTrial]


@dataclass(frozen=True)
class Importance:
    """The fraction of the variance of the trials' ranks that a key alone explains; null with too few trials."""

    key: str
    fraction: float | None


@dataclass(frozen=True)
class SweepReport(Result):
    """The document that `aifx sweep --json` and `aifx sweep show --json` print.

    Attributes:
        best_by: what ranks the settings.
        num_trials: how many trials there shall be; `num_ended` of them have ended.
        settings: the best first, then those without a rank.
        best: the best setting as lines for aifx.toml, with the values that all trials share.
    """

    sweep: str
    best_by: str
    sampler: Sampler
    num_trials: int
    num_ended: int
    settings: list[RankedSetting]
    importance: list[Importance]
    best: str | None


def report(project: Project, name: str, sweep: Sweep) -> SweepReport:
    """The report of a sweep, whether it has ended or goes on."""
    by_setting: dict[Hashable, list[Trial]] = {}
    for _, trial in sorted(sweep.trials.items()):
        by_setting.setdefault(literal(trial.setting), []).append(trial)
    settings = rank([_setting(project, trials) for trials in by_setting.values()], sweep.design.best_by)
    best = next((one for one in settings if one.rank == 1), None)
    return SweepReport(
        sweep=name,
        best_by=sweep.design.best_by,
        sampler=sweep.design.sampler,
        num_trials=max(sweep.num_trials, len(sweep.trials)),
        num_ended=sum(trial.status is not None for trial in sweep.trials.values()),
        settings=settings,
        importance=importance(sweep),
        best=None if best is None else as_toml({**sweep.design.space.fixed, **best.values}),
    )


def _setting(project: Project, trials: Sequence[Trial]) -> RankedSetting:
    listed = [
        SweepTrial(
            number=trial.number,
            run=trial.run,
            seed=trial.values.get(SEED),
            status=trial.status or run_status(project.run(trial.run)).status,
            value=trial.value,
            step=trial.step,
            error=trial.error,
        )
        for trial in trials
    ]
    return RankedSetting(None, trials[0].setting, *_mean_and_std(listed), None, None, None, listed)


def _mean_and_std(trials: Sequence[SweepTrial]) -> tuple[float | None, float | None]:
    values = [trial.value for trial in trials if trial.value is not None]
    whole = _whole(trials)
    std = math.sqrt(_squares(whole) / (len(whole) - 1)) if len(whole) > 1 else None
    return (fmean(values) if values else None), std


def _whole(trials: Sequence[SweepTrial]) -> list[float]:
    return [trial.value for trial in trials if trial.value is not None and trial.status in WHOLE]


def _squares(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)


def rank(settings: Sequence[RankedSetting], best_by: str) -> list[RankedSetting]:
    """The settings, the best first, each compared with the best."""
    by = parse_best_by(best_by)
    ranked = sorted(
        (one for one in settings if one.value is not None and not _is_broken(one)),
        key=lambda one: Score(by.metric, by.direction, one.value or 0.0).cost,
    )
    compared = [_compared(at, one, ranked) for at, one in enumerate(ranked, 1)]
    return [*compared, *(one for one in settings if one.value is None or _is_broken(one))]


def _compared(place: int, one: RankedSetting, ranked: Sequence[RankedSetting]) -> RankedSetting:
    best = ranked[0]
    assert best.value is not None
    assert one.value is not None
    difference, margin, verdict = one.value - best.value, None, "best"
    if place > 1:
        margin = margin_between(_whole(best.trials), _whole(one.trials), len(ranked))
        verdict = "unknown" if margin is None else "undecided" if abs(difference) <= margin else "worse"
    return replace(one, rank=place, difference=difference, margin=margin, verdict=cast(Verdict, verdict))


def margin_between(first: Sequence[float], second: Sequence[float], num_settings: int) -> float | None:
    """The largest difference of two means that seeds alone explain, at 95 %; None if either has fewer than two values.

    That of Games and Howell 1976: each setting has a variance of its own, and the studentized range allows for the best
    one having been picked from `num_settings`.
    """
    if min(len(first), len(second)) < 2:
        return None
    errors = [_squares(values) / (len(values) - 1) / len(values) for values in (first, second)]
    if not sum(errors):
        return 0.0
    parts = [error**2 / (len(values) - 1) for error, values in zip(errors, (first, second), strict=True)]
    freedom = sum(errors) ** 2 / sum(parts)
    return _studentized_range(num_settings, math.floor(freedom * 4) / 4) * math.sqrt(sum(errors) / 2)


def _is_broken(setting: RankedSetting) -> bool:
    return any(trial.status in ("diverged", "failed") for trial in setting.trials)


@cache
def _studentized_range(num_groups: int, freedom: float) -> float:
    """Its quantile takes a tenth of a second, so degrees of freedom are rounded down to quarters."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(CONFIDENCE, num_groups, freedom))


def importance(sweep: Sweep) -> list[Importance]:
    """The importance of each key, the most important first.

    An analysis of variance of one factor, on ranks so that a few bad losses do not hide the rest: the variance that the
    groups of a key explain, less what as many groups explain by chance (epsilon squared, Kelley 1935). Trials that
    diverged rank last, and pruned ones by the value that they had.
    """
    best_by = parse_best_by(sweep.design.best_by)
    ended = [t for t in sweep.trials.values() if t.value is not None or t.status == "diverged"]
    costs = [
        math.inf
        if t.status == "diverged" or t.value is None
        else Score(best_by.metric, best_by.direction, t.value).cost
        for t in ended
    ]
    found = [
        Importance(key, explained(_groups([t.values[key] for t in ended]), costs)) for key in sweep.design.space.keys
    ]
    return sorted(found, key=lambda one: -1.0 if one.fraction is None else one.fraction, reverse=True)


def _groups(values: Sequence[Any]) -> list[Hashable]:
    """The group of each value: the value itself, or for numbers of which most differ, one of a few ranges."""
    distinct = {literal(value) for value in values}
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(values) or len(distinct) <= max(BINS, len(values) // 3):
        return [literal(value) for value in values]
    from scipy.stats import rankdata

    bins = max(min(BINS, len(values) // 3), 2)
    return [int((place - 1) * bins / len(values)) for place in rankdata(numbers)]


def explained(groups: Sequence[Hashable], costs: Sequence[float]) -> float | None:
    """Epsilon squared of the costs' ranks by group, 0 to 1; None if there are not more costs than groups."""
    num_groups = len(set(groups))
    if len(costs) <= num_groups:
        return None
    from scipy.stats import rankdata

    ranks = [float(place) for place in rankdata(costs)]
    by_group: dict[Hashable, list[float]] = {}
    for group, place in zip(groups, ranks, strict=True):
        by_group.setdefault(group, []).append(place)
    total = _squares(ranks) / (len(ranks) - 1)
    within = sum(map(_squares, by_group.values())) / (len(ranks) - num_groups)
    return max(1 - within / total, 0.0) if total else 0.0


def as_toml(values: Values) -> str:
    """Values as lines for aifx.toml."""
    sections: dict[str, list[str]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append(f"{literal_key(key)} = {literal(value)}")
    return "\n\n".join("\n".join([f"[{section}]", *lines]) for section, lines in sections.items()) + "\n"
