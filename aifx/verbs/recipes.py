"""Data sets as files: the steps that make each, and a command that does those that are missing."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Unpack, get_type_hints

import tomli
from pydantic import TypeAdapter, ValidationError

from aifx.core.errors import AifxError, ConfigError, DataError, ExitCode, UsageError, did_you_mean
from aifx.core.files import read_file
from aifx.core.json_values import plain
from aifx.core.parsing import parse_toml
from aifx.core.results import Result
from aifx.curation.add_plan import AddedFiles
from aifx.curation.contracts import load_contract, named_data_sets
from aifx.curation.execution import MadeVersion, NotMade
from aifx.curation.pii.reports import PiiReport
from aifx.data.names import ROW
from aifx.data.versions.catalog import DATASET_NAME, check_dataset_name
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import StepOptions, find_catalog, project_around
from aifx.verbs.data_add import data_add
from aifx.verbs.data_classify import data_classify
from aifx.verbs.data_expect import RULES, data_expect
from aifx.verbs.data_labels import data_label_apply
from aifx.verbs.data_steps import data_clean, data_decontaminate, data_dedupe, data_join, data_mix, data_pii, data_split
from aifx.verbs.referrers import renew

if TYPE_CHECKING:
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Manifest

log = logging.getLogger(__name__)

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

GIVEN = ("sources", "sets")
"""Positional arguments of verbs, of which there is at least one."""

NO_SETTINGS = {"pii": ("spans", "output"), "dedupe": ("rebuild_sketches",), "add": ("only",)}
"""Arguments of verbs that change no row, which a recipe cannot set."""


@dataclass(frozen=True)
class RecipeStep:
    """A step of a recipe.

    Attributes:
        name: a key of `STEPS`.
        settings: arguments of its verb.
    """

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """The steps that make a data set, and the data sets of the same file that they read."""

    name: str
    steps: tuple[RecipeStep, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class RecipeStepMade:
    """A step of a data set that was made.

    Attributes:
        dropped: rows that it left out; of "add", those that could not be read.
        is_new: False if its version was there already.
        is_accepted: False if it broke a limit: then no step after it runs, and the name keeps its meaning.
    """

    step: str
    reference: str
    rows: int
    dropped: int
    is_new: bool
    is_accepted: bool


@dataclass(frozen=True)
class RecipeMade:
    """A data set that a recipe made.

    Attributes:
        reference: the version that the name means now; None if there is none.
    """

    name: str
    reference: str | None
    steps: tuple[RecipeStepMade, ...]

    @property
    def is_accepted(self) -> bool:
        return all(step.is_accepted for step in self.steps)


@dataclass(frozen=True)
class MadeRecipes(Result):
    """The document of `aifx data make --json`: the data sets, in the order in which they were made."""

    data_sets: tuple[RecipeMade, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if all(made.is_accepted for made in self.data_sets) else ExitCode.VERDICT


@dataclass(frozen=True)
class PlannedStep:
    """A step that would run, or whose version is there.

    Attributes:
        reference: the version; None if the step would run.
        why: the reason to run it. If its version is there, what comes of that; empty if nothing does.
    """

    step: str
    reference: str | None
    why: str


@dataclass(frozen=True)
class PlannedRecipe:
    """The steps of a data set."""

    name: str
    steps: tuple[PlannedStep, ...]


@dataclass(frozen=True)
class PlannedRecipes(Result):
    """The document of `aifx data make --dry-run --json`: the data sets, in the order in which they would be made."""

    data_sets: tuple[PlannedRecipe, ...]


def data_make(*names: str, recipe: StrPath | None = None, **options: Unpack[StepOptions]) -> MadeRecipes:
    """Make data sets as a recipe says: do the steps that are missing, and nothing else.

    A name gets its new meaning once, after the last step. A run after a kill goes on where the other one ended. If the
    result of a step is not accepted, because it drops too many rows for example, nothing after it runs.

    Args:
        names: data sets of the recipe; by default all. Those that they read are made before them.
        recipe: file; by default recipe.toml in the project.

    Example:
        >>> made = aifx.data_make("notes")
        >>> [(step.step, step.dropped) for step in made.data_sets[0].steps]
        [('add', 0), ('dedupe', 1)]
    """
    path = _path(recipe, options)
    catalog, project = find_catalog(options.get("root"), options.get("project", "."))
    done: list[RecipeMade] = []
    for each in _in_order(read_recipes(path), names, path):
        steps: list[RecipeStepMade] = []
        for step, made in _versions(each, path.parent, catalog, options):
            dropped = made.dropped if isinstance(made, MadeVersion) else made.quarantined
            steps.append(RecipeStepMade(step, made.reference, made.rows, dropped, made.is_new, made.is_accepted))
            log.info("%s: %s", step, _outcome(steps[-1]))
        if steps[-1].is_accepted:
            _, version = catalog.find(steps[-1].reference)
            if catalog.latest(each.name) != version:
                _check_erased(catalog, each.name, steps[-1].reference)
                catalog.set_latest(each.name, version)
                if not any(step.is_new for step in steps):
                    log.info("%s means %s now", each.name, version)
        meaning = catalog.latest(each.name)
        done.append(RecipeMade(each.name, meaning and f"{each.name}@{meaning}", tuple(steps)))
        if not steps[-1].is_accepted:
            still = f"still means {meaning}" if meaning else "means no version"
            log.info("%s is not accepted, and %s %s", steps[-1].reference, each.name, still)
            break
    renew(catalog, project)
    return MadeRecipes(tuple(done))


def data_make_plan(*names: str, recipe: StrPath | None = None, **options: Unpack[StepOptions]) -> PlannedRecipes:
    """Find the steps that `data_make` would run, and why. Reads no row and writes nothing.

    The arguments are those of `data_make`.

    Example:
        >>> plan = aifx.data_make_plan("notes")
        >>> [(step.step, bool(step.why)) for step in plan.data_sets[0].steps]
        [('add', True), ('dedupe', True)]
    """
    options["dry_run"] = True
    path = _path(recipe, options)
    catalog, _ = find_catalog(options.get("root"), options.get("project", "."))
    planned: list[PlannedRecipe] = []
    changed: set[str] = set()
    for each in _in_order(read_recipes(path), names, path):
        steps: list[PlannedStep] = []
        why, is_accepted = "", True
        if read := sorted(changed.intersection(each.reads)):
            why = f"{read[0]} is made first"
        else:
            try:
                for step, made in _versions(each, path.parent, catalog, options):
                    steps.append(PlannedStep(step, made.reference, ""))
                    is_accepted = made.is_accepted
            except NotMade as missing:
                why = _why(missing, catalog, each, len(steps))
            else:
                _, version = catalog.find(str(steps[-1].reference))
                if not is_accepted:
                    steps[-1] = replace(steps[-1], why="it is not accepted, and nothing after it runs")
                    planned.append(PlannedRecipe(each.name, tuple(steps)))
                    break
                if catalog.latest(each.name) != version:
                    steps[-1] = replace(steps[-1], why=f"{each.name} will mean it")
                    changed.add(each.name)
        for left in each.steps[len(steps) :]:
            steps.append(PlannedStep(left.name, None, why))
            why = "the step before it makes other rows"
            changed.add(each.name)
        planned.append(PlannedRecipe(each.name, tuple(steps)))
    return PlannedRecipes(tuple(planned))


def read_recipes(path: Path) -> dict[str, Recipe]:
    """The recipes of a file, by the name of the data set. Raises ConfigError, which names the place."""
    try:
        document = parse_toml(read_file(path).decode("utf-8-sig"))
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
    steps = tuple(_parse_step(given, f"{path}: {name}, step {n}") for n, given in enumerate(table["steps"], 1))
    for number, step in enumerate(steps, 1):
        if (number == 1) != (step.name in FIRST):
            why = f"{' or '.join(FIRST)} is the first step of a data set, and no other"
            raise ConfigError(f"{path}: {name}, step {number} ({step.name}) is out of place", why, REFERENCE)
    if not steps:
        raise ConfigError(f"{path}: [{name}] has no step", "a data set is made by steps", REFERENCE)
    for number, step in enumerate(steps, 1):
        if name in _compared_with(step, name) and not any(before.name == "split" for before in steps[: number - 1]):
            why = "its own validation and test rows are compared with, and no step before it splits the rows"
            hint = "add a step split before it, or name texts: against = [...]"
            raise ConfigError(f"{path}: {name}, step {number} ({step.name}) has nothing to compare with", why, hint)
    return Recipe(name, steps, tuple(sorted(_read_by(steps, name, path.parent).intersection(names))))


def _parse_step(given: Any, where: str) -> RecipeStep:
    if not isinstance(given, dict) or len(given) != 1 or not isinstance(next(iter(given.values())), dict):
        why = "a step is a table with its name and its settings"
        raise ConfigError(f"{where} cannot be used", why, "{ dedupe = { near = 0.8 } }")
    ((name, settings),) = given.items()
    if name not in STEPS:
        raise ConfigError(f"{where}: no step {name!r}", did_you_mean(name, STEPS), REFERENCE)
    known = _settings_of(name)
    where = f"{where} ({name})"
    for key, value in settings.items():
        if key not in known:
            hint = f"aifx data {name.replace('_', ' ')} --help"
            raise ConfigError(f"{where}: no setting {key!r}", did_you_mean(key, known), hint)
        try:
            known[key].validate_python(value, strict=True)
        except ValidationError as e:
            why = "; ".join(dict.fromkeys(error["msg"] for error in e.errors()))
            raise ConfigError(f"{where}: {key} = {value!r} cannot be used", why, REFERENCE) from None
    if missing := [key for key in _required(name) if key not in settings or (key in GIVEN and not settings[key])]:
        raise ConfigError(f"{where}: {missing[0]!r} is missing", "the step requires it", REFERENCE)
    if name == "pii" and not (settings.get("mask") or settings.get("drop")):
        raise ConfigError(f"{where}: neither mask nor drop", "the step would change no row", "pii = { mask = true }")
    if settings.get("mask") and settings.get("drop"):
        raise ConfigError(f"{where}: mask and drop", "a dropped row has no mask", "leave one of them out")
    return RecipeStep(name, settings)


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
    compared = {text for step in steps for text in _compared_with(step, name) if text != name}
    joined = {step.settings["features"] for step in steps if step.name == "join"}
    contracts = [load_contract(_contract(step, folder)) for step in steps if step.name == "expect"]
    judged = {text for rules in contracts for text in named_data_sets(rules) if text.partition("@")[0] != name}
    return {reference.partition("@")[0] for reference in mixed | compared | joined | judged}


def _contract(step: RecipeStep, folder: Path) -> Path | Sequence[Mapping[str, Any]]:
    """The rules of a step `expect`, or the file that has them."""
    rules = step.settings.get("rules") or RULES
    return folder / os.path.expanduser(rules) if isinstance(rules, str) else rules


def _compared_with(step: RecipeStep, name: str) -> Sequence[str]:
    """The texts that `decontaminate` compares a data set with: by default its own validation and test rows.

    Those of `data.dataset` are not: a mix may have that name that reads this data set, so that each run of the recipe
    would compare with other texts than the one before.
    """
    if step.name != "decontaminate":
        return ()
    against: Sequence[str] = step.settings.get("against") or (name,)
    return against


def _in_order(recipes: Mapping[str, Recipe], names: Sequence[str], path: Path) -> list[Recipe]:
    """The recipes of these names and of what they read, each after what it reads. Raises UsageError, ConfigError."""
    for name in names:
        if name not in recipes:
            raise UsageError(f"no data set {name!r} in {path}", did_you_mean(name, recipes), "aifx data make --dry-run")
    graph: dict[str, tuple[str, ...]] = {}
    left = list(names or recipes)
    while left:
        name = left.pop(0)
        if name not in graph:
            graph[name] = recipes[name].reads
            left += recipes[name].reads
    try:
        return [recipes[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as e:
        why = " reads ".join(reversed(e.args[1]))
        raise ConfigError(f"{path}: {e.args[1][0]} reads itself", why, "make it of other data sets") from None


def _versions(
    recipe: Recipe, folder: Path, catalog: Catalog, options: StepOptions
) -> Iterator[tuple[str, MadeVersion | AddedFiles]]:
    """The version of each step, in turn, up to one that is not accepted. Raises NotMade in a dry run."""
    reference = recipe.name
    for number, step in enumerate(recipe.steps, 1):
        settings = dict(step.settings)
        given = [each for key in GIVEN for each in settings.pop(key, ())]
        if step.name == "add":
            given = [_from_folder(source, folder) for source in given]
            settings["only"] = True
        if step.name == "decontaminate":
            compared = _compared_with(step, recipe.name)
            settings["against"] = [
                reference if text == recipe.name else text if _is_dataset(text, catalog) else _from_folder(text, folder)
                for text in compared
            ]
        if step.name == "expect":
            settings["rules"] = _contract(step, folder)
        elif "rules" in settings:
            rules = settings["rules"]
            settings["rules"] = [_from_folder(each, folder) if each.endswith(".toml") else each for each in rules]
        try:
            result = STEPS[step.name](reference, *given, **settings, **{**options, "set_name": False})
        except AifxError as e:
            e.what = f"{recipe.name}, step {number} ({step.name}): {e.what}"
            raise
        made: MadeVersion | AddedFiles | None = result.made if isinstance(result, PiiReport) else result
        assert made is not None, "pii removes what it finds"
        yield step.name, made
        if not made.is_accepted:
            return
        reference = made.reference


def _from_folder(text: str, folder: Path) -> str:
    """A path of a recipe, relative to its folder, or a URL."""
    return text if "://" in text else str(folder / os.path.expanduser(text))


def _is_dataset(text: str, catalog: Catalog) -> bool:
    """Whether a text of `against` names a data set, as `aifx data decontaminate` decides it."""
    name = text.partition("@")[0]
    return bool(DATASET_NAME.fullmatch(name)) and bool(catalog.latest(name) or ("@" in text and catalog.versions(name)))


def _outcome(made: RecipeStepMade) -> str:
    dropped = f", {made.dropped:,} dropped" if made.dropped else ""
    return f"{made.reference}, {made.rows:,} rows{dropped}{'' if made.is_new else ', which was there already'}"


def _why(missing: NotMade, catalog: Catalog, recipe: Recipe, place: int) -> str:
    """The difference between a step, at a place of the recipe, and the one that the current version has there."""
    name = recipe.name
    history = list(_history(catalog, name))
    if history and any(parent.startswith(f"{name}@") for parent in history[-1].parents):
        return "a version that the current one was made from is gone"
    alike = [one for one in history if one.step.name == missing.step]
    if missing.step not in FIRST:  # of steps with one name, that with as many before it
        alike = alike[::-1][sum(step.name == recipe.steps[place].name for step in recipe.steps[:place]) :]
    before = next(iter(alike), None)
    if before is None:
        return "the data set has no such step yet" if catalog.latest(name) else "there is no such data set yet"
    if missing.note:
        return missing.note
    old, new = plain(before.step.settings), plain(missing.settings)
    for key in (key for key in {**old, **new} if old.get(key) != new.get(key)):
        values = [str(each.get(key)) for each in (old, new)]
        return f"{key} changed" + (f": {values[0]} before, {values[1]} now" if len("".join(values)) < 60 else "")
    if before.parents != missing.parents:
        return "its rows come from another step than before"
    return "the code of the step changed" if before.code != missing.code else "its version is gone"


def _history(catalog: Catalog, name: str) -> Iterator[Manifest]:
    """The manifests of the current version and of those that it was made of, the newest first, up to a deleted one."""
    version = catalog.latest(name)
    reference = f"{name}@{version}" if version else None
    while reference is not None:
        manifest = catalog.manifest(reference)
        yield manifest
        own = [parent for parent in manifest.parents if parent.startswith(f"{name}@")]
        reference = own[0] if own and catalog.holds(own[0]) else None


def _check_erased(catalog: Catalog, name: str, reference: str) -> None:
    """Raise DataError if a version has rows that `aifx data erase` removed from the current one."""
    from aifx.data.versions.shards import read_shard

    erased: set[str] = set()
    for manifest in _history(catalog, name):
        if manifest.step.name == "erase":
            for path in catalog.open(manifest.whole_reference).dropped:
                erased.update(read_shard(path, [ROW])[ROW].to_pylist())
    if not erased:
        return
    for path in catalog.open(reference).shards:
        if again := erased.intersection(read_shard(path, [ROW])[ROW].to_pylist()):
            why = f"row {min(again)} was erased, and a source file still has it; {name} keeps its meaning"
            hint = f"remove erased rows from the source files; aifx data why {min(again)} names the file"
            raise DataError(f"{reference} would bring erased rows back", why, hint)


def _path(recipe: StrPath | None, options: StepOptions) -> Path:
    if recipe is not None:
        return Path(recipe).absolute()
    project = project_around(options.get("project", "."))
    return (project.root if project else Path.cwd()) / RECIPE
