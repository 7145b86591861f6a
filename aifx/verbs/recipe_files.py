"""recipe.toml: the steps that make each data set, as they are read and checked."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import tomli
from pydantic import TypeAdapter, ValidationError

from aifx.core.errors import ConfigError, UsageError, did_you_mean
from aifx.core.files import read_input
from aifx.core.parsing import parse_toml
from aifx.curation.contracts import load_contract, named_data_sets
from aifx.data.versions.catalog import check_dataset_name
from aifx.verbs.catalogs import StepOptions
from aifx.verbs.data_add import data_add
from aifx.verbs.data_classify import data_classify
from aifx.verbs.data_expect import RULES, data_expect
from aifx.verbs.data_labels import data_label_apply
from aifx.verbs.data_steps import data_clean, data_decontaminate, data_dedupe, data_join, data_mix, data_pii, data_split

RECIPE = "recipe.toml"

REFERENCE = "docs/data-recipes.md has the steps and an example"

STEPS: Mapping[str, Callable[..., Any]] = {
    "add": data_add,
    "mix": data_mix,
    "clean": data_clean,
    "dedupe": data_dedupe,
    "classify": data_classify,
    "pii": data_pii,
    "label_apply": data_label_apply,
    "join": data_join,
    "split": data_split,
    "decontaminate": data_decontaminate,
    "expect": data_expect,
}
"""The verb of each step. The settings of a step are the arguments of its verb."""

FIRST = ("add", "mix")
"""Steps that begin a data set."""

APART = (*FIRST, "join")
"""Steps that read other rows than those of the step before, and make a version of their own."""

GIVEN = ("sources", "sets")
"""Positional arguments of verbs, of which there is at least one."""

KEEP = "keep"
"""The key of a step that keeps its version."""

NONE = "none"
"""The text of a setting that is None."""

NO_SETTINGS = {"pii": ("spans", "output"), "dedupe": ("rebuild_sketches",), "add": ("only", "request")}
"""Arguments of verbs that change no row, which a recipe cannot set."""


@dataclass(frozen=True)
class RecipeStep:
    """A step of a recipe.

    Attributes:
        name: a key of `STEPS`.
        settings: arguments of its verb.
        keeps: whether its rows are a version, although a step follows.
    """

    name: str
    settings: Mapping[str, Any]
    keeps: bool = False

    def links_to(self, next: str) -> bool:
        """Whether it makes one version together with a step after it, if it does not keep its own."""
        return self.name not in APART and next not in APART


@dataclass(frozen=True)
class Recipe:
    """The steps that make a data set, and the data sets of the same file that they read."""

    name: str
    steps: tuple[RecipeStep, ...]
    reads: tuple[str, ...]

    @property
    def segments(self) -> list[list[RecipeStep]]:
        """The steps, those together that make one version."""
        found: list[list[RecipeStep]] = []
        for step in self.steps:
            if not found or found[-1][-1].keeps or not found[-1][-1].links_to(step.name):
                found.append([])
            found[-1].append(step)
        return found


def read_recipes(path: Path) -> dict[str, Recipe]:
    """The recipes of a file, by the name of the data set. Raises ConfigError, which names the place."""
    try:
        document = parse_toml(read_input(path).decode("utf-8-sig"))
    except OSError as e:
        raise ConfigError(f"{path} cannot be read", e.strerror or str(e), f"--recipe FILE; {REFERENCE}") from None
    except tomli.TOMLDecodeError as e:
        raise ConfigError(f"{path}:{e.lineno}:{e.colno}: not TOML", str(e), REFERENCE) from None
    except ValueError as e:
        raise ConfigError(f"{path}: not a recipe", str(e).splitlines()[0], REFERENCE) from None
    if not document:
        raise ConfigError(f"{path} has no data set", "a recipe has a table for each", REFERENCE)
    return {name: _parse(name, table, document.keys(), path) for name, table in document.items()}


def _parse(name: str, table: Any, names: Collection[str], path: Path) -> Recipe:
    try:
        check_dataset_name(name)
    except UsageError as e:
        raise ConfigError(f"{path}: {e.what}", e.why, REFERENCE) from None
    if not isinstance(table, dict) or table.keys() != {"steps"} or not isinstance(table["steps"], list):
        unknown = [key for key in table if key != "steps"] if isinstance(table, dict) else []
        why = f"{unknown[0]!r} is no key of a data set" if unknown else "a data set has a list of steps"
        raise ConfigError(f"{path}: [{name}] cannot be used", why, "steps = [{ add = { sources = [...] } }, ...]")
    steps = tuple(parse_step(given, f"{path}: {name}, step {n}") for n, given in enumerate(table["steps"], 1))
    for number, step in enumerate(steps, 1):
        if (number == 1) != (step.name in FIRST):
            why = f"{' or '.join(FIRST)} is the first step of a data set, and no other"
            raise ConfigError(f"{path}: {name}, step {number} ({step.name}) is out of place", why, REFERENCE)
    if not steps:
        raise ConfigError(f"{path}: [{name}] has no step", "a data set is made by steps", REFERENCE)
    for number, step in enumerate(steps, 1):
        if name in compared_with(step, name) and not any(before.name == "split" for before in steps[: number - 1]):
            why = "its own validation and test rows are compared with, and no step before it splits the rows"
            hint = "add a step split before it, or name texts: against = [...]"
            raise ConfigError(f"{path}: {name}, step {number} ({step.name}) has nothing to compare with", why, hint)
        rules = contract_of(step, path.parent) if step.name == "expect" else ()
        if isinstance(rules, Path) and not rules.exists():
            hint = f"write it, or make {name} without this step: aifx data expect {name} --infer writes a first one"
            raise ConfigError(f"{path}: {name}, step {number} (expect): no file {rules}", "it has the rules", hint)
    return Recipe(name, steps, tuple(sorted(_read_by(steps, name, path.parent).intersection(names))))


def parse_step(given: Any, where: str) -> RecipeStep:
    """The step that a recipe has at a place. Raises ConfigError, which names the place."""
    keeps = given.get(KEEP, False) if isinstance(given, dict) else False
    named = {key: value for key, value in given.items() if key != KEEP} if isinstance(given, dict) else {}
    if len(named) != 1 or not isinstance(next(iter(named.values())), dict) or not isinstance(keeps, bool):
        why = "a step is a table with its name and its settings, and keep = true to keep its version"
        raise ConfigError(f"{where} cannot be used", why, "{ dedupe = { near = 0.8 } }")
    ((name, settings),) = named.items()
    settings = dict(settings)
    if name not in STEPS:
        raise ConfigError(f"{where}: no step {name!r}", did_you_mean(name, STEPS), REFERENCE)
    known = _settings_of(name)
    where = f"{where} ({name})"
    for key, value in settings.items():
        if key not in known:
            hint = f"aifx data {name.replace('_', ' ')} --help"
            raise ConfigError(f"{where}: no setting {key!r}", did_you_mean(key, known), hint)
        if bad := _bad_value(value):
            raise ConfigError(f"{where}: {key} = {value!r} cannot be used", bad, REFERENCE)
        try:
            if value == NONE and _takes_none(known[key]):
                value = settings[key] = None
            known[key].validate_python(value, strict=True)
        except ValidationError as e:
            why = "; ".join(dict.fromkeys(error["msg"] for error in e.errors() if error["type"] != "sequence_str"))
            why = why or f"it is a list: {key} = [{value!r}]"
            raise ConfigError(f"{where}: {key} = {value!r} cannot be used", why, REFERENCE) from None
    if missing := [key for key in _required(name) if key not in settings or (key in GIVEN and not settings[key])]:
        raise ConfigError(f"{where}: {missing[0]!r} is missing", "the step requires it", REFERENCE)
    if name == "pii" and not (settings.get("mask") or settings.get("drop")):
        raise ConfigError(f"{where}: neither mask nor drop", "the step would change no row", "pii = { mask = true }")
    if settings.get("mask") and settings.get("drop"):
        raise ConfigError(f"{where}: mask and drop", "a dropped row has no mask", "leave one of them out")
    return RecipeStep(name, settings, keeps)


def _bad_value(value: Any) -> str:
    """The reason why no setting can be this value, or have it in its list; empty if there is none."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and (not one or "\0" in one):
            return "a text is empty" if not one else "a text has a NUL, which no path and no name has"
        if isinstance(one, float) and not math.isfinite(one):
            return "it is no finite number"
    return ""


def _takes_none(kind: TypeAdapter[Any]) -> bool:
    """Whether a setting can be None, which TOML does not have, and not the text "none"."""
    try:
        kind.validate_python(None, strict=True)
    except ValidationError:
        return False
    try:
        kind.validate_python(NONE, strict=True)
    except ValidationError:
        return True
    return False


@cache
def _settings_of(step: str) -> Mapping[str, TypeAdapter[Any]]:
    """The settings of a step with their types: the arguments of its verb, except for the data set and `StepOptions`."""
    verb = STEPS[step]
    of_run = {*StepOptions.__annotations__, *NO_SETTINGS.get(step, ())}
    given = {
        name: Sequence[str] if one.kind is one.VAR_POSITIONAL else one.annotation
        for name, one in list(inspect.signature(verb).parameters.items())[1:]
        if one.kind is not one.VAR_KEYWORD and name not in of_run
    }
    hints = get_type_hints(SimpleNamespace(__annotations__=given), globalns=inspect.unwrap(verb).__globals__)
    return {name: TypeAdapter(hint) for name, hint in hints.items()}


def _required(step: str) -> Iterator[str]:
    for name, one in list(inspect.signature(STEPS[step]).parameters.items())[1:]:
        if one.kind is not one.VAR_KEYWORD and one.default is one.empty:
            yield name


def _read_by(steps: Sequence[RecipeStep], name: str, folder: Path) -> set[str]:
    """The names that may be those of data sets that the steps of a data set read."""
    mixed = {text.rpartition(":")[0] for step in steps for text in step.settings.get("sets", ())}
    compared = {text for step in steps for text in compared_with(step, name) if text != name}
    joined = {step.settings["features"] for step in steps if step.name == "join"}
    contracts = [load_contract(contract_of(step, folder)) for step in steps if step.name == "expect"]
    judged = {text for rules in contracts for text in named_data_sets(rules) if text.partition("@")[0] != name}
    return {reference.partition("@")[0] for reference in mixed | compared | joined | judged}


def contract_of(step: RecipeStep, folder: Path) -> Path | Sequence[Mapping[str, Any]]:
    """The rules of a step `expect`, or the file that has them."""
    rules = step.settings.get("rules") or RULES
    return folder / os.path.expanduser(rules) if isinstance(rules, str) else rules


def compared_with(step: RecipeStep, name: str) -> Sequence[str]:
    """The texts that `decontaminate` compares a data set with: by default its own validation and test rows.

    Those of `data.dataset` are not: a mix may have that name that reads this data set, so that each run of the recipe
    would compare with other texts than the one before.
    """
    if step.name != "decontaminate":
        return ()
    against: Sequence[str] = step.settings.get("against") or (name,)
    return against
