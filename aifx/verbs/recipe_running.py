"""The steps of a recipe, run one after the other: the verb of each, and one version of those that follow each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from aifx.core.errors import AifxError
from aifx.curation.add_plan import AddedFiles
from aifx.curation.execution import Made, MadeVersion, NotMade
from aifx.data.versions.catalog import DATASET_NAME
from aifx.data.versions.made_steps import made_steps
from aifx.verbs.catalogs import ArgumentsChecked, StepChain, StepOptions, StepPlace
from aifx.verbs.recipe_files import GIVEN, STEPS, Recipe, compared_with, contract_of

if TYPE_CHECKING:
    from aifx.curation.step import Step
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Manifest, Version

StepResult: TypeAlias = MadeVersion | AddedFiles


@dataclass(frozen=True)
class RecipeCalls:
    """Calls the verbs of a recipe.

    Attributes:
        folder: of the recipe.
        catalog: None if only the arguments are checked.
    """

    recipe: Recipe
    folder: Path
    catalog: Catalog | None

    def check(self, options: StepOptions) -> None:
        """Check the arguments of all steps. Raises UsageError with the place of the step."""
        for number in range(1, len(self.recipe.steps) + 1):
            with suppress(ArgumentsChecked):
                self.call(number, self.recipe.name, {**options, "check": True})

    def make(self, options: StepOptions) -> Iterator[tuple[str, StepResult]]:
        """The version of each step, in turn, up to one that is not accepted. Raises NotMade in a dry run."""
        reference, number = self.recipe.name, 1
        for steps in self.recipe.segments:
            if len(steps) == 1:
                found = [self.call(number, reference, options)]
            else:
                assert self.catalog is not None
                found = _Chain(self, self.catalog.open(reference), number, len(steps), options).make()
            for step, made in zip(steps, found, strict=False):
                yield step.name, made
                if not made.is_accepted:
                    return
            reference, number = found[-1].reference, number + len(steps)

    def call(self, number: int, reference: str, options: StepOptions) -> StepResult:
        """Call the verb of a step for the version before it. Raises what it raises, with the place of the step.

        Args:
            number: of the step, from 1.
        """
        recipe, step = self.recipe, self.recipe.steps[number - 1]
        settings = dict(step.settings)
        given = [each for key in GIVEN for each in settings.pop(key, ())]
        if step.name == "add":
            given = [self._path(source) for source in given]
            settings["only"] = True
        if step.name == "decontaminate":
            settings["against"] = [
                reference if text == recipe.name else text if self._is_dataset(text) else self._path(text)
                for text in compared_with(step, recipe.name)
            ]
        if step.name == "expect":
            settings["rules"] = contract_of(step, self.folder)
        elif "rules" in settings:
            rules = settings["rules"]
            settings["rules"] = [self._path(each) if each.endswith(".toml") else each for each in rules]
        place = f"{recipe.name}, step "
        try:
            result = STEPS[step.name](reference, *given, **settings, **{**options, "set_name": False})
        except AifxError as e:
            if not e.what.startswith(place):  # a step after it, which its verb called
                e.what = f"{place}{number} ({step.name}): {e.what}"
            raise
        made: StepResult | None = result.made if step.name == "pii" else result  # its report has the version
        assert made is not None, "pii removes what it finds"
        return made

    def _path(self, text: str) -> str:
        """A path of the recipe, relative to its folder, or a URL."""
        return text if "://" in text else str(self.folder / os.path.expanduser(text))

    def _is_dataset(self, text: str) -> bool:
        """Whether a text of `against` names a data set, as `aifx data decontaminate` decides it."""
        name, _, version = text.partition("@")
        if self.catalog is None or not DATASET_NAME.fullmatch(name):
            return False
        return bool(self.catalog.latest(name) or (version and self.catalog.versions(name)))


class _Chain:
    """Makes one version of several steps.

    Each verb checks its arguments and gives its step; instead of running it, the chain calls the verb of the next step.
    When the last has given its own, all run, and each verb gets back what became of its step. So what a verb keeps open
    for its step, such as the texts of a test, is there until the end.
    """

    def __init__(self, calls: RecipeCalls, first: Version, number: int, count: int, options: StepOptions) -> None:
        """Chain `count` steps of a recipe, of which the first has a number and reads a version."""
        self._calls, self._first, self._number, self._count, self._options = calls, first, number, count, options
        self._links: list[Step] = []
        self._limits: list[Callable[[Manifest], bool]] = []
        self._found: dict[int, StepResult] = {}
        self._made: Made | None = None

    def make(self) -> list[StepResult]:
        """The results of the steps' verbs, up to one that broke its limit.

        Raises NotMade in a dry run, and what verbs and steps raise.
        """
        self._next()
        return [self._found[index] for index in sorted(self._found)]

    def _next(self) -> None:
        from aifx.curation.planned import planned_version

        index, version = len(self._links), planned_version(self._first, self._links)
        options: StepOptions = {**self._options, "chain": StepChain(version, self._take)}
        self._found[index] = self._calls.call(self._number + index, version.manifest.whole_reference, options)

    def _take(self, place: StepPlace, step: Step, accepts: Callable[[Manifest], bool]) -> Made:
        """Take the next step from its verb. Returns what became of it, when all have run."""
        from aifx.curation.chain import LimitBroken

        index = len(self._links)
        self._links.append(step)
        self._limits.append(accepts)
        if len(self._links) < self._count:
            try:
                self._next()
            except LimitBroken as e:
                if e.number != index:
                    raise
                self._made = self._execute(place, index + 1)
        else:
            self._check_limits(place)
            self._made = self._execute(place, self._count)
        assert self._made is not None
        manifest = made_steps(self._made.version.manifest)[index]
        return Made(replace(self._made.version, manifest=manifest), self._made.is_new, accepts(manifest))

    def _check_limits(self, place: StepPlace) -> None:
        """Raise LimitBroken if the version of all steps is missing, and that of the first few was not accepted."""
        from aifx.curation.chain import LimitBroken

        for count in (self._count, *range(1, self._count)):
            with suppress(NotMade):
                made = self._execute(replace(place, dry_run=True), count)
                if count == self._count:
                    return
                if not made.is_accepted:
                    raise LimitBroken(count - 1)

    def _execute(self, place: StepPlace, count: int) -> Made:
        """Make the version of the first steps."""
        from aifx.curation.chain import ChainStep, LimitBroken, can_link
        from aifx.curation.execution import execute, work_folder

        links, name = tuple(self._links[:count]), self._first.manifest.name
        for link in links:
            assert can_link(link), f"{link.name} makes a version of its own: add it to recipe_files.APART"
        run = partial(execute, name=name, catalog=place.catalog, limits=place.limits, run_tasks=place.runner)
        if count == 1:
            return run(links[0], accepts=self._limits[0], set_name=False, dry_run=place.dry_run)
        step = ChainStep((self._first,), links, tuple(self._limits[:count]), place.runner)
        try:
            return run(step, accepts=step.accepts, set_name=False, dry_run=place.dry_run)
        except LimitBroken:
            shutil.rmtree(work_folder(step, name, place.catalog), ignore_errors=True)
            raise
