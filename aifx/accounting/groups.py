"""What projects used by team, tag or model: the runs, promotions and alarms of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from aifx.accounting.reading import ProjectUse, RunUse

By = Literal["team", "tag", "model", "month"]
BYS: tuple[By, ...] = get_args(By)

NONE = "(none)"
"""The group of what has no team, tag or model."""


def group_uses(uses: Sequence[ProjectUse], by: By) -> dict[str, list[ProjectUse]]:
    """The parts of what projects used, by the name of the group. A run with two tags is in two groups."""
    names = {name for use in uses for run in use.runs for name in _of_run(use, run, by)}
    names |= {name for use in uses for model in _models(use) for name in _of_model(use, model, by)}
    return {
        name: [_part(use, name, by) for use in uses] for name in sorted(names, key=lambda name: (name == NONE, name))
    }


def _part(use: ProjectUse, name: str, by: By) -> ProjectUse:
    def is_in(model: object) -> bool:
        return name in _of_model(use, _name_of(model), by)

    return replace(
        use,
        runs=[run for run in use.runs if name in _of_run(use, run, by)],
        events={id: one for id, one in use.events.items() if is_in(one.data.get("model"))},
        deliveries=[one for one in use.deliveries if is_in(one.model)],
        data_s=0.0,
        problems=[],
    )


def _models(use: ProjectUse) -> set[str]:
    events = (_name_of(one.data["model"]) for one in use.events.values() if one.data.get("model"))
    return {*events, *(one.model for one in use.deliveries)}


def _name_of(model: object) -> str:
    """The name in "fraud" or "fraud@production"."""
    return str(model).partition("@")[0]


def _of_run(use: ProjectUse, run: RunUse, by: By) -> tuple[str, ...]:
    if by == "tag":
        return run.tags or (NONE,)
    models = use.pushed.get(run.name, set())
    return (
        tuple(sorted(models)) or (NONE,) if by == "model" else _named(use.teams.get(model, set()) for model in models)
    )


def _of_model(use: ProjectUse, model: str, by: By) -> tuple[str, ...]:
    if by == "model":
        return (model,)
    if by == "team":
        return _named([use.teams.get(model, set())])
    runs = [run for run, models in use.pushed.items() if model in models]
    return _named(use.tags.get(run, ()) for run in runs)


def _named(sets: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for names in sets for name in names})) or (NONE,)
