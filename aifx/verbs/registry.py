"""Models by name: their versions, and which of them an alias means."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from aifx.config.places import with_registry
from aifx.core.errors import AifxError, UsageError
from aifx.core.project import CONFIG_NAME, Project
from aifx.verbs.arguments import StrPath, time_of
from aifx.verbs.catalogs import project_around
from aifx.verbs.models import ROOT_VARIABLE

if TYPE_CHECKING:
    from aifx.registry.reports import (
        AliasMeaning,
        ComparedVersions,
        FoundVersions,
        Heads,
        ModelHistory,
        ModelList,
        ModelPage,
        PolicyPage,
        PulledVersion,
        ShownEntry,
        ShownVersion,
        VerifiedRegistry,
        VersionPage,
    )
    from aifx.registry.roots import Root

P = ParamSpec("P")
R = TypeVar("R")


def hints_name_root(verb: Callable[P, R]) -> Callable[P, R]:
    """A function whose hints are commands for the `root` that it was given: others have other versions of that name."""

    @functools.wraps(verb)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        if (root := kwargs.get("root")) is None:
            return verb(*args, **kwargs)
        try:
            done: Any = verb(*args, **kwargs)
        except AifxError as error:
            error.hint = with_root(error.hint, str(root))
            raise
        if findings := getattr(done, "findings", ()):
            shown = (replace(one, hint=with_root(one.hint, str(root))) for one in findings)
            done = replace(done, findings=tuple(shown))
        found: R = done
        return found

    return named


def with_root(hint: str, root: str) -> str:
    """A hint whose commands use the registry at `root`."""
    hint = re.sub(r"\baifx registry (?!keygen)([a-z]+)", lambda m: f"{m[0]} --root {shlex.quote(root)}", hint)
    place = shlex.quote(root if "://" in root else os.path.abspath(root))
    return re.sub(r"\baifx (?=[a-z]+ (?:--\S+ )?--(?:model|against) )", f"{ROOT_VARIABLE}={place} aifx ", hint)


def find_root(root: str | None, project: StrPath = ".") -> tuple[Root, Project | None]:
    """The registry at `root`, that of the project around a folder, or that of ROOT_VARIABLE; and the project.

    Raises UsageError if none is known.
    """
    from aifx.registry.roots import open_root

    found = project_around(project)
    if root is None and found is None and (root := os.environ.get(ROOT_VARIABLE)) is None:
        why = f"no {CONFIG_NAME} in {Path(project).absolute()} or above it names its root"
        raise UsageError("the registry is not known", why, "--root FOLDER, or aifx init my-project")
    if found is not None and root is None:
        found = with_registry(found) or configured(found)
    return open_root(root, found), found


def configured(project: Project) -> Project:
    """The project at the places that its whole configuration names."""
    from aifx.kinds import load_config

    return load_config(project).apply_to(project)


def registry_ls(*, root: str | None = None, project: StrPath = ".") -> ModelList:
    """List models, with what their aliases mean.

    Args:
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> [model.name for model in aifx.registry_ls().models]
        ['tiny']
    """
    from aifx.registry.reports import list_models

    return list_models(find_root(root, project)[0])


@hints_name_root
def registry_show(name: str, *, root: str | None = None, project: StrPath = ".") -> ModelPage:
    """Describe a model: its versions, and what its aliases mean.

    Args:
        name: of the model.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> [alias.alias for alias in aifx.registry_show("tiny").aliases]
        ['production']
    """
    from aifx.registry.reports import show_model

    return show_model(find_root(root, project)[0], name)


@hints_name_root
def registry_show_version(reference: str, *, root: str | None = None, project: StrPath = ".") -> VersionPage:
    """Describe a version of a model, with its evidence.

    Args:
        reference: "NAME@v3", "NAME@ALIAS" or "NAME@DIGITS".
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_show_version("tiny@v1").version.aliases
        ('production',)
    """
    from aifx.registry.reports import show_version_page

    return show_version_page(find_root(root, project)[0], reference)


@hints_name_root
def registry_search(*words: str, root: str | None = None, project: StrPath = ".") -> FoundVersions:
    """List the versions that have each word in their name, tags, aliases, people, reasons or data.

    Args:
        words: such as "fraud" or "team=risk"; upper and lower case are the same.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> [version.reference for version in aifx.registry_search("team=risk").versions]
        ['tiny@v1']
    """
    from aifx.registry.reports import search_versions

    return search_versions(find_root(root, project)[0], words)


@hints_name_root
def registry_history(
    name: str, alias: str | None = None, *, root: str | None = None, project: StrPath = "."
) -> ModelHistory:
    """List the entries of a model's ledger: who did what, when, why and on what evidence.

    Args:
        name: of the model.
        alias: list the entries about this alias alone.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> [entry.action for entry in aifx.registry_history("tiny", "production").entries][0]
        'promote'
    """
    from aifx.registry.reports import history_of

    return history_of(find_root(root, project)[0], name, alias)


@hints_name_root
def registry_at(
    name: str, alias: str, time: str | datetime | None = None, *, root: str | None = None, project: StrPath = "."
) -> AliasMeaning:
    """Say which version an alias meant at a time, and what servers had adopted. The verdict is bad if it meant none.

    Args:
        name: of the model.
        alias: such as "production".
        time: such as "2026-11-30T14:00:00+01:00", in UTC if it has no zone; by default now.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_at("tiny", "production").version
        'v1'
    """
    from aifx.registry.reports import meaning_at

    return meaning_at(find_root(root, project)[0], name, alias, time_of("--time", time))


@hints_name_root
def registry_head(*names: str, root: str | None = None, project: StrPath = ".") -> Heads:
    """Return the last entry of each ledger. Keep the digests elsewhere: `registry_verify` compares them.

    Args:
        names: of models; by default all.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> [head.name for head in aifx.registry_head("tiny").heads]
        ['tiny']
    """
    from aifx.registry.reports import heads_of

    return heads_of(find_root(root, project)[0], names)


@hints_name_root
def registry_verify(
    *names: str, heads: Sequence[str] = (), root: str | None = None, project: StrPath = "."
) -> VerifiedRegistry:
    """Compare every entry, file and piece of evidence with its digest. The verdict is bad if one differs.

    Args:
        names: of models; by default all.
        heads: digests of entries that must be there: a removed last entry shows in no other way.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_verify().problems
        ()
    """
    from aifx.registry.reports import verify_root

    verified = verify_root(find_root(root, project)[0], names, tuple(heads))
    if not verified.entries and not verified.problems:
        why = "it has neither a policy nor a model"
        raise UsageError(f"{verified.root} is no registry", why, "aifx registry init")
    return verified


@hints_name_root
def registry_diff(first: str, second: str, *, root: str | None = None, project: StrPath = ".") -> ComparedVersions:
    """Compare two versions: metrics, data, configuration and size.

    Args:
        first: "NAME@v3", "NAME@ALIAS" or "NAME@DIGITS".
        second: the same.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_diff("tiny@v1", "tiny@production").is_different
        False
    """
    from aifx.registry.reports import compare_versions

    return compare_versions(find_root(root, project)[0], first, second)


@hints_name_root
def registry_pull(reference: str, folder: StrPath, *, root: str | None = None, project: StrPath = ".") -> PulledVersion:
    """Copy a version to a folder, and compare what arrives with its digests.

    Args:
        reference: "NAME@v3", "NAME@ALIAS" or "NAME@DIGITS".
        folder: a new one, or one that holds an unfinished copy.
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> aifx.registry_pull("tiny@production", "pulled").reference
        'tiny@v1'
    """
    from aifx.registry.reports import pull_version

    return pull_version(find_root(root, project)[0], reference, Path(folder))


@hints_name_root
def registry_policy(*, root: str | None = None, project: StrPath = ".") -> PolicyPage:
    """Return the policy that holds, and who made it.

    Args:
        root: folder or URL with the models; by default `registry.root` of the project.
        project: a folder in the project whose models are meant.

    Example:
        >>> "[aliases.production]" in aifx.registry_policy().text
        True
    """
    from aifx.registry.reports import show_policy

    return show_policy(find_root(root, project)[0])
