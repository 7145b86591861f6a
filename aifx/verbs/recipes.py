"""Data sets as files: the steps that make each, and a command that does those that are missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from aifx.core.calls import call_each
from aifx.core.errors import AifxError, ConfigError, DataError, ExitCode, UsageError, did_you_mean
from aifx.core.files import holding
from aifx.core.json_values import plain
from aifx.core.licensing import LicenseConflict
from aifx.core.logs import at_level
from aifx.core.plurals import counted
from aifx.core.requests import Request, RequestDone, find_request
from aifx.core.results import Result
from aifx.curation.execution import MadeVersion, NotMade
from aifx.curation.work_folders import holding_dataset, steps_folder
from aifx.data.versions.requests import check_request, finish_request
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import (
    DEFAULT_MEMORY,
    LEAST_MEMORY,
    StepOptions,
    find_catalog,
    limits_of,
    project_around,
)
from aifx.verbs.data_expect import ExpectedVersion
from aifx.verbs.data_steps import CombinedVersion
from aifx.verbs.recipe_files import RECIPE, Recipe, read_recipes
from aifx.verbs.recipe_reasons import reasons
from aifx.verbs.recipe_running import RecipeCalls
from aifx.verbs.referrers import renew

if TYPE_CHECKING:
    from aifx.data.versions.catalog import Catalog

log = logging.getLogger(__name__)


MAKING = ".make"
"""The folder of a data set that `aifx data make` holds."""

PROCESS_BYTES = 32 << 20
"""Bytes that the next step of a data set reads, from which on it is made in a process of its own beside others."""


@dataclass(frozen=True)
class RecipeStepMade:
    """A step of a data set that was made.

    Attributes:
        reference: the version with what it made; that of neighbouring steps is the same.
        rows: that it left.
        dropped: rows that it left out; of "add", those that could not be read.
        is_new: False if its version was there already.
        is_accepted: False if it broke a limit: then no version is made after it, and the name keeps its meaning.
        license_conflicts: of a mix or join, among the sources of what it combines.
        warned: ids of rules of a contract that were broken, and whose level is "warn".
    """

    step: str
    reference: str
    rows: int
    dropped: int
    is_new: bool
    is_accepted: bool
    license_conflicts: tuple[LicenseConflict, ...] = ()
    warned: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeMade:
    """A data set that a recipe made.

    Attributes:
        reference: the version that the name means now; None if there is none.
        is_new: False if the name meant this version before.
        is_repeated: whether an earlier call with the same request id made it, and this is what that call reported.
    """

    name: str
    reference: str | None
    is_new: bool
    steps: tuple[RecipeStepMade, ...]
    is_repeated: bool = False

    @property
    def is_accepted(self) -> bool:
        return all(step.is_accepted for step in self.steps)


@dataclass(frozen=True)
class MadeRecipes(Result):
    """The document of `aifx data make --json`.

    Attributes:
        data_sets: in the order in which they were made.
        request: the id of the request.
        is_repeated: whether earlier calls with the same id made all of them.
    """

    data_sets: tuple[RecipeMade, ...]
    request: str | None = None
    is_repeated: bool = False

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


def data_make(
    *names: str, recipe: StrPath | None = None, request: str | None = None, **options: Unpack[StepOptions]
) -> MadeRecipes:
    """Make data sets as a recipe says: do the steps that are missing, and nothing else.

    A name gets its new meaning once, after the last step. A run after a kill goes on where the other one ended. If the
    result of a step is not accepted, because it drops too many rows for example, nothing after it runs.

    Args:
        names: data sets of the recipe; by default all. Those that they read are made before them.
        recipe: file; by default recipe.toml in the project.
        request: an id: a second call with it reports what the first one did, whatever the names mean since. Data sets
            that the first did not reach are made.

    Example:
        >>> made = aifx.data_make("notes")
        >>> [(step.step, step.dropped) for step in made.data_sets[0].steps]
        [('add', 0), ('dedupe', 1)]
    """
    path = _path(recipe, options)
    asked = find_request(request, "data make")
    catalog, project = find_catalog(options.get("root"), options.get("project", "."))
    done: list[RecipeMade] = []
    groups = _in_order(read_recipes(path), names, path, options)
    for made in (made for group in groups for made in _make_group(group, path.parent, options, asked)):
        done.append(made)
        if not made.is_accepted:
            break
    renew(catalog, project)
    return MadeRecipes(tuple(done), request, all(made.is_repeated for made in done))


def _make_group(
    group: Sequence[Recipe], folder: Path, options: StepOptions, asked: Request | None
) -> Iterator[RecipeMade]:
    """Make data sets that do not read each other; those with much work side by side, which share the memory."""
    limits = limits_of(options.get("memory", DEFAULT_MEMORY), options.get("workers"))
    large: list[Recipe] = []
    if len(group) > 1 and options.get("on", "local") == "local":
        large = [each for each in group if _missing_bytes(each, folder, options) >= PROCESS_BYTES]
    most = min(len(large), limits.workers, limits.memory_bytes // (2 * LEAST_MEMORY))
    found: dict[str, RecipeMade] = {}
    if most > 1:
        log.info("side by side: %s", ", ".join(each.name for each in large))
        share: StepOptions = {
            **options,
            "memory": f"{limits.memory_bytes // most}B",
            "workers": max(1, limits.workers // most),
        }
        for index, made in call_each(partial(_make_one, folder=folder, options=share, asked=asked), large, most):
            found[large[index].name] = made
            _report(made)
    for each in group:
        if each.name in found:
            yield found[each.name]
        else:
            made = _make_one(each, folder, options, asked)
            _report(made)
            yield made


def _missing_bytes(recipe: Recipe, folder: Path, options: StepOptions) -> int:
    """The bytes that the first missing step of a data set reads; 0 if nothing is missing, or if that is not known."""
    catalog, _ = find_catalog(options.get("root"), options.get("project", "."))
    try:
        with at_level("aifx", logging.ERROR):  # making it will warn
            for _ in RecipeCalls(recipe, folder, catalog).make({**options, "dry_run": True}):
                pass
    except NotMade as missing:
        return missing.input_bytes
    except AifxError:  # which making it will report
        return 0
    return 0


def _make_one(recipe: Recipe, folder: Path, options: StepOptions, asked: Request | None) -> RecipeMade:
    """Make a data set, and let its name mean the version of its last step. Raises FolderBusy."""
    catalog, _ = find_catalog(options.get("root"), options.get("project", "."))
    name = recipe.name
    with holding(steps_folder(name, catalog) / MAKING, f"the recipe of {name}", "makes it"):
        try:
            if asked is not None:
                check_request(catalog.store.below(name), asked)
        except RequestDone as before:
            return before.repeated(RecipeMade)
        _check_meaning(catalog, name)
        steps: list[RecipeStepMade] = []
        for step, made in RecipeCalls(recipe, folder, catalog).make(options):
            dropped = made.dropped if isinstance(made, MadeVersion) else made.quarantined
            conflicts = made.license_conflicts if isinstance(made, CombinedVersion) else ()
            rules = made.rules if isinstance(made, ExpectedVersion) else ()
            warned = tuple(rule.id for rule in rules if rule.outcome == "warned")
            outcome = made.is_new, made.is_accepted, conflicts, warned
            steps.append(RecipeStepMade(step, made.reference, made.rows, dropped, *outcome))
        meaning = catalog.latest(name)
        version = catalog.find(steps[-1].reference)[1] if steps[-1].is_accepted else meaning
        done = RecipeMade(name, version and f"{name}@{version}", version != meaning, tuple(steps))
        if asked is not None or version != meaning:
            with holding_dataset(name, catalog, "lets its name mean another version"):
                if asked is not None:
                    finish_request(catalog.store.below(name), version, asked, plain(done))
                else:
                    assert version is not None
                    catalog.set_latest(name, version)
    return done


def _report(made: RecipeMade) -> None:
    """Log what became of a data set."""
    for step in made.steps:
        log.info("%s: %s", step.step, _outcome(step))
    if made.is_new:
        log.info("%s means %s", made.name, str(made.reference).partition("@")[2])
    if not made.is_accepted:
        still = f"still means {made.reference.partition('@')[2]}" if made.reference else "means no version"
        log.info("%s is not accepted, and %s %s", made.steps[-1].reference, made.name, still)


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
    for each in (each for group in _in_order(read_recipes(path), names, path, options) for each in group):
        _check_meaning(catalog, each.name)
        steps: list[PlannedStep] = []
        whys, is_accepted = [""], True
        if read := sorted(changed.intersection(each.reads)):
            whys = [f"{read[0]} is made first"]
        else:
            try:
                for step, made in RecipeCalls(each, path.parent, catalog).make(options):
                    steps.append(PlannedStep(step, made.reference, ""))
                    is_accepted = made.is_accepted
            except NotMade as missing:
                whys = reasons(missing, catalog, each, len(steps))
            else:
                _, version = catalog.find(str(steps[-1].reference))
                if not is_accepted:
                    steps[-1] = replace(steps[-1], why="it is not accepted, and nothing after it runs")
                    planned.append(PlannedRecipe(each.name, tuple(steps)))
                    break
                if catalog.latest(each.name) != version:
                    steps[-1] = replace(steps[-1], why=f"{each.name} will mean it")
                    changed.add(each.name)
        for number, left in enumerate(each.steps[len(steps) :]):
            why = whys[number] if number < len(whys) else "the step before it makes other rows"
            steps.append(PlannedStep(left.name, None, why))
            changed.add(each.name)
        planned.append(PlannedRecipe(each.name, tuple(steps)))
    return PlannedRecipes(tuple(planned))


def _in_order(
    recipes: Mapping[str, Recipe], names: Sequence[str], path: Path, options: StepOptions
) -> list[list[Recipe]]:
    """The recipes of these names and of what they read, in groups: each reads those of groups before it alone.

    Raises UsageError, also for a value that a step cannot use, ConfigError.
    """
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
    sorter, groups = TopologicalSorter(graph), list[list[Recipe]]()
    try:
        sorter.prepare()
    except CycleError as e:
        why = " reads ".join(reversed(e.args[1]))
        raise ConfigError(f"{path}: {e.args[1][0]} reads itself", why, "make it of other data sets") from None
    while sorter.is_active():
        ready = sorter.get_ready()
        groups.append([recipes[name] for name in graph if name in ready])
        sorter.done(*ready)
    for each in (each for group in groups for each in group):
        RecipeCalls(each, path.parent, None).check(options)
    return groups


def _outcome(made: RecipeStepMade) -> str:
    lost = "could not be read" if made.step == "add" else "dropped"
    dropped = f", {made.dropped:,} {lost}" if made.dropped else ""
    there = "" if made.is_new else ", which was there already"
    warned = f"; warned: {', '.join(made.warned)}" if made.warned else ""
    return f"{made.reference}, {counted(made.rows, 'row')}{dropped}{there}{warned}"


def _check_meaning(catalog: Catalog, name: str) -> None:
    """Raise DataError if a name means a version that is not there."""
    if catalog.latest(name) is not None:
        catalog.find(name)


def _path(recipe: StrPath | None, options: StepOptions) -> Path:
    if recipe is not None:
        return Path(recipe).absolute()
    project = project_around(options.get("project", "."))
    return (project.root if project else Path.cwd()) / RECIPE
