"""The plan of a sweep, from options and from its record: checked before the first trial starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from aifx.config.best_by import best_by_of, parse_best_by
from aifx.config.config import Config, Difference, number_settings
from aifx.core.errors import ConfigError, UsageError, did_you_mean
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.kinds import load_config
from aifx.registry.versions import pinned_name
from aifx.sweeps.record import Design, End, Sweep, Trial, is_sweep, read_sweep, sweep_folder, trial_name
from aifx.sweeps.space import (
    SAMPLERS,
    SEED,
    Choices,
    Outcome,
    Sampler,
    Space,
    check_optuna,
    grid_size,
    is_known_ahead,
    overrides,
    parse_space,
    sample,
)

BASE = "finetune.base"


@dataclass(frozen=True)
class Options:
    """The options of the command line; None is not given.

    Attributes:
        settings: `KEY=A,B,C` texts. Without any, a sweep that exists goes on with its own.
        seed: of the sampler.
    """

    settings: Sequence[str] = ()
    sampler: str | None = None
    trials: int | None = None
    seed: int | None = None
    prune: bool | None = None
    config_file: Path | None = None


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that there is, or that will be. `status` is null if it has not ended."""

    run: str
    values: Mapping[str, Any]
    status: End | None


@dataclass(frozen=True)
class PlannedSweep(Result):
    """The document that `aifx sweep --dry-run --json` prints: the trials known ahead, and the number of all trials."""

    sweep: str
    num_trials: int
    trials: list[PlannedTrial]


def open_sweep(project: Project, name: str, options: Options) -> Sweep:
    """The sweep that `name` is, or that the options begin. Writes nothing.

    Raises UsageError, ConfigError and EnvironmentFault for what cannot be swept.
    """
    before = read_sweep(sweep_folder(project, name))
    if before is None:
        sweep = _new(project, name, options)
    else:
        _check_same(project, name, before.design, options)
        trials = before.num_trials if options.trials is None else options.trials
        prune = before.prune if options.prune is None else options.prune
        sweep = replace(before, num_trials=trials, prune=prune)
    if sweep.design.sampler == "tpe":
        check_optuna()
    size = grid_size(sweep.design.space) if sweep.design.sampler == "grid" else None
    if size is not None:
        sweep = replace(sweep, num_trials=min(sweep.num_trials, size * max(len(sweep.design.space.seeds), 1)))
    _check_trials(project, name, sweep)
    return sweep


def _new(project: Project, name: str, options: Options) -> Sweep:
    if not options.settings:
        why = "a sweep needs settings with several values"
        raise UsageError(f"no sweep {name!r} to go on with", why, "aifx sweep --set optimizer.learning_rate=1e-3,3e-3")
    space = parse_space(project, options.settings, options.config_file)
    sampler = _sampler(options.sampler or "grid")
    size = grid_size(space)
    if sampler == "grid" and size is None:
        why = "a grid needs lists, and a range has any number of values"
        raise UsageError(
            "--sampler grid cannot sample a range", why, "aifx sweep --sampler random --trials 20 --set ..."
        )
    if sampler != "grid" and options.trials is None:
        why = "it can draw any number of settings"
        raise UsageError(f"--sampler {sampler} requires --trials", why, f"--sampler {sampler} --trials 20")
    if sampler != "grid" and not space.swept:
        why = f"{SEED} alone is swept, and each of its values is one trial"
        raise UsageError(f"--sampler {sampler} has nothing to draw", why, "leave out --sampler")
    base = load_config(project, overrides(space.fixed), file=options.config_file)
    if base.train.validate_every == 0:
        why = "validations rank the trials"
        raise ConfigError("train.validate_every = 0: a sweep needs validations", why, "--set train.validate_every=100")
    file = None if options.config_file is None else str(options.config_file)
    best_by = str(best_by_of(base))
    pins = _pins(base.finetune.base, space, base.apply_to(project))
    design = Design(space, sampler, options.seed or 0, best_by, file, _base_values(base, space), pins)
    trials = options.trials if options.trials is not None else (size or 1) * max(len(space.seeds), 1)
    return Sweep(design, trials, prune=options.prune is not False)


def _pins(base: str | None, space: Space, project: Project) -> dict[str, str]:
    """`Design.pins`. Raises UsageError for a name of no version, EnvironmentFault."""
    swept = space.swept.get(BASE)
    names = swept.values if isinstance(swept, Choices) else (base,)
    return {name: pinned_name(name, project) for name in names if name is not None and "@" in name}


def _sampler(name: str) -> Sampler:
    for known in SAMPLERS:
        if name == known:
            return known
    raise UsageError(f"no sampler {name!r}", did_you_mean(name, SAMPLERS), f"--sampler {SAMPLERS[0]}")


def _base_values(config: Config, space: Space) -> dict[str, Any]:
    """The settings that the sweep leaves as they are."""
    return {key: value for key, value in number_settings(config).items() if key not in space.keys}


def _check_same(project: Project, name: str, design: Design, options: Options) -> None:
    """Raise UsageError or ConfigError if the trials to come would not be comparable with the trials before."""
    other = f"aifx sweep --name {name}-2 ...    (or without --set, to go on with {name!r})"
    file = options.config_file or (None if design.config_file is None else Path(design.config_file))
    if options.settings and parse_space(project, options.settings, file) != design.space:
        keys = ", ".join(design.space.keys)
        raise UsageError(f"sweep {name!r} has other settings", f"it was started with other values for {keys}", other)
    given = {"sampler": options.sampler, "seed": options.seed}
    given["config"] = None if options.config_file is None else str(options.config_file)
    mine = {"sampler": design.sampler, "seed": design.seed, "config": design.config_file}
    for option, value in given.items():
        if value is not None and value != mine[option]:
            raise UsageError(f"sweep {name!r} has --{option} {mine[option]}", f"not {value}", other)
    now = _base_values(load_config(project, overrides(design.space.fixed), file=file), design.space)
    changed = [
        Difference(key, design.base.get(key), now.get(key))
        for key in dict.fromkeys([*design.base, *now])
        if design.base.get(key) != now.get(key)
    ]
    if changed:
        what = f"the configuration has changed since sweep {name!r} began"
        raise ConfigError(what, "\n".join(map(str, changed)), f"change it back, or: aifx sweep --name {name}-2 ...")


def _check_trials(project: Project, name: str, sweep: Sweep) -> None:
    """Raise if settings of a known trial cannot be used, or if its run would be another's."""
    for trial in planned(sweep, name):
        load_config(project, trial_overrides(sweep.design, trial), file=config_file(sweep.design))
        run = project.run(trial.run)
        if trial.number not in sweep.trials and (run.exists() or is_sweep(run)):
            why = "it belongs to no trial of this sweep"
            raise UsageError(f"run {trial.run!r} exists", why, f"aifx sweep --name {name}-2 ...")


def config_file(design: Design) -> Path | None:
    return None if design.config_file is None else Path(design.config_file)


def trial_overrides(design: Design, trial: Trial) -> list[str]:
    """The `--set` of a trial."""
    values = {**design.space.fixed, **trial.values}
    pinned = design.pins.get(str(values.get(BASE, design.base.get(BASE))))
    return overrides(values if pinned is None else {**values, BASE: pinned})


def planned(sweep: Sweep, name: str) -> Iterator[Trial]:
    """The trials that there are, and those to come whose values are known ahead: all but TPE's later ones."""
    yield from sweep.trials.values()
    for number in range(1, sweep.num_trials + 1):
        if number not in sweep.trials and is_known_ahead(sweep.design.sampler, setting_index(sweep.design, number)):
            yield make_trial(sweep, name, number)


def plan(sweep: Sweep, name: str) -> PlannedSweep:
    """The trials of a sweep that are known ahead."""
    trials = [PlannedTrial(trial.run, trial.values, trial.status) for trial in planned(sweep, name)]
    return PlannedSweep(name, max(sweep.num_trials, len(trials)), trials)


def setting_index(design: Design, number: int) -> int:
    """Which setting trial `number` tries: the seeds of a setting follow each other."""
    return (number - 1) // max(len(design.space.seeds), 1)


def make_trial(sweep: Sweep, name: str, number: int) -> Trial:
    """The trial of a number, from the results so far."""
    design = sweep.design
    index = setting_index(design, number)
    same = next((t for t in sweep.trials.values() if setting_index(design, t.number) == index), None)
    values = same.setting if same is not None else _sampled(sweep, index)
    if design.space.seeds:
        values = {**values, SEED: design.space.seeds[(number - 1) % len(design.space.seeds)]}
    return Trial(number, trial_name(name, number), values)


def _sampled(sweep: Sweep, index: int) -> dict[str, Any]:
    design = sweep.design
    by_index: dict[int, list[Trial]] = {}
    for trial in sweep.trials.values():
        by_index.setdefault(setting_index(design, trial.number), []).append(trial)
    outcomes = [_outcome(trials) for _, trials in sorted(by_index.items())]
    direction = parse_best_by(design.best_by).direction
    return sample(design.space, design.sampler, design.seed, index, outcomes, direction)


def _outcome(trials: Sequence[Trial]) -> Outcome:
    values = [trial.value for trial in trials if trial.value is not None and trial.status != "diverged"]
    steps = [trial.step or 0 for trial in trials]
    return Outcome(
        values=trials[0].setting,
        value=fmean(values) if values else None,
        step=max(steps),
        is_cut=any(trial.status in ("pruned", "diverged", "failed") for trial in trials),
        is_running=any(trial.status is None for trial in trials),
    )
