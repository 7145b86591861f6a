"""Data sets as files: the steps that make each, and a command that does those that are missing."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Unpack, get_type_hints

import tomli
from pydantic import TypeAdapter, ValidationError

from aifx.core.calls import call_each
from aifx.core.errors import AifxError, ConfigError, DataError, ExitCode, UsageError, did_you_mean
from aifx.core.files import holding, read_file
from aifx.core.json_values import plain
from aifx.core.licensing import LicenseConflict
from aifx.core.parsing import parse_toml
from aifx.core.results import Result
from aifx.curation.add_plan import AddedFiles
from aifx.curation.contracts import load_contract, named_data_sets
from aifx.curation.execution import Made, MadeVersion, NotMade
from aifx.curation.pii.reports import PiiReport
from aifx.curation.work_folders import steps_folder
from aifx.data.names import ROW
from aifx.data.versions.catalog import DATASET_NAME, check_dataset_name
from aifx.data.versions.made_steps import MAKE, made_steps
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import (
    DEFAULT_MEMORY,
    LEAST_MEMORY,
    ArgumentsChecked,
    StepChain,
    StepOptions,
    StepPlace,
    find_catalog,
    limits_of,
    project_around,
)
from aifx.verbs.data_add import data_add
from aifx.verbs.data_classify import data_classify
from aifx.verbs.data_expect import RULES, data_expect
from aifx.verbs.data_labels import data_label_apply
from aifx.verbs.data_steps import (
    CombinedVersion,
    data_clean,
    data_decontaminate,
    data_dedupe,
    data_join,
    data_mix,
    data_pii,
    data_split,
)
from aifx.verbs.recipe_files import (
    FIRST,
    GIVEN,
    RECIPE,
    REFERENCE,
    STEPS,
    Recipe,
    RecipeStep,
    compared_with,
    contract_of,
    read_recipes,
)
from aifx.verbs.referrers import renew

if TYPE_CHECKING:
    from aifx.curation.step import Step
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Manifest, Version

log = logging.getLogger(__name__)


TOGETHER_STEPS = ("clean", "dedupe", "pii", "label_apply", "split", "decontaminate")
"""Steps that can make one version together with their neighbours."""


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
    """

    step: str
    reference: str
    rows: int
    dropped: int
    is_new: bool
    is_accepted: bool
    license_conflicts: tuple[LicenseConflict, ...] = ()


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
    for group in _in_order(read_recipes(path), names, path, options):
        for made in _make_group(group, path.parent, options):
            done.append(made)
            if not made.is_accepted:
                renew(catalog, project)
                return MadeRecipes(tuple(done))
    renew(catalog, project)
    return MadeRecipes(tuple(done))


def _make_group(group: Sequence[Recipe], folder: Path, options: StepOptions) -> Iterator[RecipeMade]:
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
        for index, made in call_each(partial(_make_one, folder=folder, options=share), large, most):
            found[large[index].name] = made
            _report(made)
    for each in group:
        if each.name in found:
            yield found[each.name]
        else:
            made = _make_one(each, folder, options)
            _report(made)
            yield made


def _missing_bytes(recipe: Recipe, folder: Path, options: StepOptions) -> int:
    """The bytes that the first missing step of a data set reads; 0 if nothing is missing, or if that is not known."""
    catalog, _ = find_catalog(options.get("root"), options.get("project", "."))
    try:
        for _ in _versions(recipe, folder, catalog, {**options, "dry_run": True}):
            pass
    except NotMade as missing:
        return missing.input_bytes
    except AifxError:  # which making it will report
        return 0
    return 0


def _make_one(recipe: Recipe, folder: Path, options: StepOptions) -> RecipeMade:
    """Make a data set, and let its name mean the version of its last step. Raises FolderBusy."""
    catalog, _ = find_catalog(options.get("root"), options.get("project", "."))
    name = recipe.name
    with holding(steps_folder(name, catalog) / MAKING, f"the recipe of {name}", "makes it"):
        steps: list[RecipeStepMade] = []
        for step, made in _versions(recipe, folder, catalog, options):
            dropped = made.dropped if isinstance(made, MadeVersion) else made.quarantined
            conflicts = made.license_conflicts if isinstance(made, CombinedVersion) else ()
            outcome = made.is_new, made.is_accepted, conflicts
            steps.append(RecipeStepMade(step, made.reference, made.rows, dropped, *outcome))
        if steps[-1].is_accepted:
            _, version = catalog.find(steps[-1].reference)
            if catalog.latest(name) != version:
                _check_erased(catalog, name, steps[-1].reference)
                catalog.set_latest(name, version)
        meaning = catalog.latest(name)
    return RecipeMade(name, meaning and f"{name}@{meaning}", tuple(steps))


def _report(made: RecipeMade) -> None:
    """Log what became of a data set."""
    for step in made.steps:
        log.info("%s: %s", step.step, _outcome(step))
    if made.is_accepted:
        log.info("%s means %s", made.name, str(made.reference).partition("@")[2])
    else:
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
        steps: list[PlannedStep] = []
        whys, is_accepted = [""], True
        if read := sorted(changed.intersection(each.reads)):
            whys = [f"{read[0]} is made first"]
        else:
            try:
                for step, made in _versions(each, path.parent, catalog, options):
                    steps.append(PlannedStep(step, made.reference, ""))
                    is_accepted = made.is_accepted
            except NotMade as missing:
                whys = _whys(missing, catalog, each, len(steps))
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
        for number, step in enumerate(each.steps, 1):
            with suppress(ArgumentsChecked):
                _call(each, number, step, each.name, path.parent, None, {**options, "check": True})
    return groups


def _versions(
    recipe: Recipe, folder: Path, catalog: Catalog, options: StepOptions
) -> Iterator[tuple[str, MadeVersion | AddedFiles]]:
    """The version of each step, in turn, up to one that is not accepted. Raises NotMade in a dry run."""
    reference, number = recipe.name, 1
    for steps in _segments(recipe):
        call = partial(_call, recipe, folder=folder, catalog=catalog)
        if len(steps) == 1:
            found = [call(number, steps[0], reference, options=options)]
        else:
            found = _Chain(catalog.open(reference), number, steps, call, options).make()
        for step, made in zip(steps, found, strict=False):
            yield step.name, made
            if not made.is_accepted:
                return
        reference, number = found[-1].reference, number + len(steps)


def _segments(recipe: Recipe) -> list[list[RecipeStep]]:
    """The steps of a data set, those together that make one version."""
    found: list[list[RecipeStep]] = []
    for step in recipe.steps:
        is_alone = not found or not (_can_join(step) and _can_join(found[-1][-1])) or found[-1][-1].keeps
        if is_alone or not recipe.is_together:
            found.append([])
        found[-1].append(step)
    return found


def _can_join(step: RecipeStep) -> bool:
    """Whether a step can make a version together with its neighbours."""
    return step.name in TOGETHER_STEPS and not {"semantic", "images"}.intersection(step.settings)


def _call(
    recipe: Recipe,
    number: int,
    step: RecipeStep,
    reference: str,
    folder: Path,
    catalog: Catalog | None,
    options: StepOptions,
) -> MadeVersion | AddedFiles:
    """Call the verb of a step for the version before it. Raises what it raises, with the place of the step.

    Args:
        catalog: None if the arguments are only checked.
    """
    settings = dict(step.settings)
    given = [each for key in GIVEN for each in settings.pop(key, ())]
    if step.name == "add":
        given = [_from_folder(source, folder) for source in given]
        settings["only"] = True
    if step.name == "decontaminate":
        compared = compared_with(step, recipe.name)
        of_name = {
            recipe.name: reference,
            **{text: text for text in compared if catalog and _is_dataset(text, catalog)},
        }
        of_name[recipe.name] = reference
        settings["against"] = [of_name.get(text) or _from_folder(text, folder) for text in compared]
    if step.name == "expect":
        settings["rules"] = contract_of(step, folder)
    elif "rules" in settings:
        rules = settings["rules"]
        settings["rules"] = [_from_folder(each, folder) if each.endswith(".toml") else each for each in rules]
    place = f"{recipe.name}, step "
    try:
        result = STEPS[step.name](reference, *given, **settings, **{**options, "set_name": False})
    except AifxError as e:
        if not e.what.startswith(place):  # a step after it, which its verb called
            e.what = f"{place}{number} ({step.name}): {e.what}"
        raise
    made: MadeVersion | AddedFiles | None = result.made if isinstance(result, PiiReport) else result
    assert made is not None, "pii removes what it finds"
    return made


class _Chain:
    """Makes one version of several steps.

    Each verb checks its arguments and gives its step; instead of running it, the chain calls the verb of the next step.
    When the last has given its own, all run, and each verb gets back what became of its step. So what a verb keeps open
    for its step, such as the texts of a test, is there until the end.
    """

    def __init__(
        self,
        first: Version,
        number: int,
        steps: Sequence[RecipeStep],
        call: Callable[..., MadeVersion | AddedFiles],
        options: StepOptions,
    ) -> None:
        """Begin with the version that the first step reads, which has this number in the recipe."""
        self._first, self._number, self._recipe_steps, self._call, self._options = first, number, steps, call, options
        self._links: list[Step] = []
        self._limits: list[Callable[[Manifest], bool]] = []
        self._found: dict[int, MadeVersion | AddedFiles] = {}
        self._made: Made | None = None

    def make(self) -> list[MadeVersion | AddedFiles]:
        """The results of the steps' verbs, up to one that broke its limit.

        Raises NotMade in a dry run, and what verbs and steps raise.
        """
        self._next()
        return [self._found[index] for index in sorted(self._found)]

    def _next(self) -> None:
        from aifx.curation.chain import planned_version

        index, version = len(self._links), planned_version(self._first, self._links)
        options: StepOptions = {**self._options, "chain": _Link(version, self.take)}
        step, reference = self._recipe_steps[index], version.manifest.whole_reference
        self._found[index] = self._call(self._number + index, step, reference, options=options)

    def take(self, place: StepPlace, step: Step, accepts: Callable[[Manifest], bool]) -> Made:
        """Take the next step from its verb. Returns what became of it, when all have run."""
        from aifx.curation.chain import LimitBroken

        index = len(self._links)
        self._links.append(step)
        self._limits.append(accepts)
        if len(self._links) < len(self._recipe_steps):
            try:
                self._next()
            except LimitBroken as e:
                if e.number != index:
                    raise
                self._made = self._execute(place, index + 1)
        else:
            for count in range(1, len(self._links)):
                self._check_limit(place, count)
            self._made = self._execute(place, len(self._links))
        assert self._made is not None
        manifest = made_steps(self._made.version.manifest)[index]
        return Made(replace(self._made.version, manifest=manifest), self._made.is_new, accepts(manifest))

    def _check_limit(self, place: StepPlace, count: int) -> None:
        """Raise LimitBroken if the first steps have a version that was not accepted."""
        from aifx.curation.chain import LimitBroken

        with suppress(NotMade):
            if not self._execute(replace(place, dry_run=True), count).is_accepted:
                raise LimitBroken(count - 1)

    def _execute(self, place: StepPlace, count: int) -> Made:
        """Make the version of the first steps."""
        from aifx.curation.chain import ChainStep, LimitBroken, can_link
        from aifx.curation.execution import execute, work_folder

        links, name = tuple(self._links[:count]), self._first.manifest.name
        for link in links:
            assert can_link(link), f"{link.name} makes a version of its own: put it into APART"
        run = partial(execute, name=name, catalog=place.catalog, limits=place.limits, run_tasks=place.runner)
        if count == 1:
            return run(links[0], accepts=self._limits[0], set_name=False, dry_run=place.dry_run)
        others = (parent for link in links for parent in link.parents[1:])
        step = ChainStep((self._first, *dict.fromkeys(others)), links, tuple(self._limits[:count]), place.runner)
        try:
            return run(step, accepts=step.accepts, set_name=False, dry_run=place.dry_run)
        except LimitBroken:
            shutil.rmtree(work_folder(step, name, place.catalog), ignore_errors=True)
            raise


@dataclass(frozen=True)
class _Link(StepChain):
    """Gives the step of a verb to a chain."""

    version: Version
    take: Callable[[StepPlace, Step, Callable[[Manifest], bool]], Made]

    def execute(self, place: StepPlace, step: Step, accepts: Callable[[Manifest], bool]) -> Made:
        return self.take(place, step, accepts)


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


TOGETHER = "one version is made of it and the steps after it"


def _whys(missing: NotMade, catalog: Catalog, recipe: Recipe, place: int) -> list[str]:
    """The reasons to make a version: of each of its steps up to the first that differs from that of the current one.

    Args:
        place: of the first of its steps in the recipe.
    """
    name = recipe.name
    history = list(_history(catalog, name))
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
