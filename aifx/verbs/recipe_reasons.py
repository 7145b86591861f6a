"""The reasons why `aifx data make` would make a version, from those that the name means now and was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aifx.core.json_values import plain
from aifx.data.versions.made_steps import MAKE, made_steps
from aifx.verbs.recipe_files import FIRST, Recipe

if TYPE_CHECKING:
    from aifx.curation.execution import NotMade
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Manifest

TOGETHER = "one version is made of it and the steps after it"


def reasons(missing: NotMade, catalog: Catalog, recipe: Recipe, place: int) -> list[str]:
    """The reasons to make a version: of each of its steps up to the first that differs from that of the current one.

    Args:
        place: of the first of its steps in the recipe.
    """
    name = recipe.name
    history = list(history_of(catalog, name))
    if history and any(parent.startswith(f"{name}@") for parent in history[-1].parents):
        return ["a version that the current one was made from is gone"]
    before = [part for one in history for part in reversed(made_steps(one))]
    steps = (
        missing.settings["steps"] if missing.step == MAKE else [{"name": missing.step, "settings": missing.settings}]
    )
    alike = [_counterpart(step["name"], before, recipe, place + number) for number, step in enumerate(steps)]
    for number, (step, one) in enumerate(zip(steps, alike, strict=True)):
        if one is None:
            why = "the data set has no such step yet" if catalog.latest(name) else "there is no such data set yet"
        else:
            why = missing.note or _difference(one.step.settings, step["settings"])
        if why:
            return [*[TOGETHER] * number, why]
    first = alike[0]
    assert first is not None
    if first.parents != missing.parents:
        return ["its rows come from another step than before"]
    if [one.step.name for one in made_steps(history[0])] != [step["name"] for step in steps]:
        return ["other steps are made together with it"]
    return ["the code of the step changed" if first.code != missing.code else "its version is gone"]


def _counterpart(step: str, before: Sequence[Manifest], recipe: Recipe, place: int) -> Manifest | None:
    """The step of the current version that is like one at a place of the recipe: of those of this name, in turn."""
    alike = [one for one in before if one.step.name == step]
    if step not in FIRST:
        alike = alike[::-1][sum(one.name == recipe.steps[place].name for one in recipe.steps[:place]) :]
    return next(iter(alike), None)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first setting that differs; empty if none does."""
    old, new = plain(old), plain(new)
    for key in (key for key in {**old, **new} if old.get(key) != new.get(key)):
        values = [str(each.get(key)) for each in (old, new)]
        return f"{key} changed" + (f": {values[0]} before, {values[1]} now" if len("".join(values)) < 60 else "")
    return ""


def history_of(catalog: Catalog, name: str) -> Iterator[Manifest]:
    """The manifests of the current version and of those that it was made of, the newest first, up to a deleted one."""
    version = catalog.latest(name)
    reference = f"{name}@{version}" if version else None
    while reference is not None:
        manifest = catalog.manifest(reference)
        yield manifest
        own = [parent for parent in manifest.parents if parent.startswith(f"{name}@")]
        reference = own[0] if own and catalog.holds(own[0]) else None
