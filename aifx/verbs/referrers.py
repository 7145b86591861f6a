"""The versions of data sets that something refers to, so that `aifx data gc --versions` keeps them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.errors import AifxError, DataError, UsageError
from aifx.core.os_errors import in_brief
from aifx.core.project import Project
from aifx.curation.history import trained_runs
from aifx.curation.labels.store import FOLDER, read_entries
from aifx.data.versions.catalog import DATASET_NAME
from aifx.data.versions.leases import Use, is_shared, leased_uses, renew_lease
from aifx.verbs.catalogs import project_around

if TYPE_CHECKING:
    from aifx.data.versions.catalog import Catalog

log = logging.getLogger(__name__)

_PINNED = re.compile(rf"{DATASET_NAME.pattern}@[0-9a-f]{{4,64}}(?=:|$)")

Referrer = Callable[["Catalog", Project], Iterator[Use]]
"""The uses of a project's data sets by one kind of thing. A reference is one that `data.dataset` takes."""


def runs(catalog: Catalog, project: Project) -> Iterator[Use]:
    """The versions that runs trained on, imported models included."""
    for run in trained_runs(project):
        yield Use(run.reference, f"run {run.run}")


def configuration(catalog: Catalog, project: Project) -> Iterator[Use]:
    """The version that `data.dataset` names."""
    from aifx.kinds import load_config

    if (reference := getattr(load_config(project).data, "dataset", None)) is not None:
        yield Use(reference, "aifx.toml")


def recipe(catalog: Catalog, project: Project) -> Iterator[Use]:
    """The versions that the project's recipe names, in its steps or in the rules of a contract."""
    from aifx.curation.contracts import load_contract
    from aifx.verbs.data_expect import RULES
    from aifx.verbs.recipe_files import RECIPE, contract_of, read_recipes

    path, contracts = project.root / RECIPE, {project.root / RULES}
    if path.exists():
        for step in (step for one in read_recipes(path).values() for step in one.steps):
            yield from _pinned(step.settings, RECIPE)
            if step.name == "expect" and isinstance(rules := contract_of(step, path.parent), Path):
                contracts.add(rules)
    for rules in sorted(contracts):
        if rules.exists():
            who = os.path.relpath(rules, project.root)
            yield from _pinned([rule.settings for rule in load_contract(rules)], who)


def _pinned(value: Any, who: str) -> Iterator[Use]:
    """The versions that texts of a document name."""
    if isinstance(value, str):
        if found := _PINNED.match(value):
            yield Use(found[0], who)
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _pinned(each, who)


def models(catalog: Catalog, project: Project) -> Iterator[Use]:
    """The versions that models of the project's registry were trained on, also if their runs are gone."""
    from aifx.kinds import load_config
    from aifx.registry.roots import open_root

    root = open_root(None, load_config(project).apply_to(project))
    for name in root.names():
        for version in root.state(name).versions.values():
            for reference in version.data if not version.is_withdrawn else ():
                yield Use(reference, f"model {name}@{version.label}")


REFERRERS: list[Referrer] = [runs, configuration, recipe, models]
"""A function for each kind of thing in a project that names versions. What else names versions adds its own here."""


def uses_of(catalog: Catalog, project: Project) -> list[Use]:
    """All uses of a project, by whole reference."""
    return _resolved(catalog, (use for referrer in REFERRERS for use in referrer(catalog, project)))


def _resolved(catalog: Catalog, uses: Iterable[Use]) -> list[Use]:
    """Uses by whole reference, each once. What names no version of the catalog is left out."""
    found: dict[Use, None] = {}
    for use in uses:
        with suppress(UsageError, DataError):
            found[Use(catalog.manifest(use.reference).whole_reference, use.who)] = None
    return list(found)


def renew(catalog: Catalog, project: Project | None, *more: Use) -> None:
    """Renew the lease of a project on the root that its data sets share with others."""
    if project is not None and is_shared(catalog.store, project):
        try:
            renew_lease(catalog.store, project, [*uses_of(catalog, project), *_resolved(catalog, more)])
        except AifxError as e:  # such as a recipe that cannot be read: the command does without
            log.warning("the lease on %s is not renewed: %s", catalog.store.url, in_brief(e))


def all_uses(catalog: Catalog, project: Project | None) -> list[Use]:
    """The uses of a project, of the project around the root, of label files, and of the leases on the root."""
    around = [project, project_around(catalog.local) if catalog.local is not None and catalog.local.is_dir() else None]
    projects = {one.root: one for one in around if one is not None}
    found = [use for one in projects.values() for use in uses_of(catalog, one)]
    return [*found, *_labelled(catalog), *leased_uses(catalog.store)]


def _labelled(catalog: Catalog) -> Iterator[Use]:
    """The versions of which people labelled rows. Label files are below the root."""
    for name in catalog.names() if catalog.local is not None else ():
        for path in sorted(Path(catalog.local or "", name, FOLDER).glob("*.jsonl")):
            for version in dict.fromkeys(entry.version for entry in read_entries(path)):
                yield Use(version, f"label file {name}/{FOLDER}/{path.name}")
