"""The model that a command uses: a run of a project, or a version from a registry."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import AifxError, UsageError
from aifx.core.project import Project, RunDirectory, find_project, open_run
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import project_around

if TYPE_CHECKING:
    from aifx.config.sections import FinetuneSection
    from aifx.registry.roots import Root

log = logging.getLogger(__name__)

ROOT_VARIABLE = "AIFX_REGISTRY__ROOT"
"""The variable of `registry.root`, which also works outside of a project."""


def is_reference(model: StrPath) -> bool:
    """Whether a text names a model version, such as "fraud@production", rather than a folder."""
    text = os.fspath(model)
    return "@" in text and os.sep not in text and not os.path.lexists(text)


def choose_model(run: str | None, model: str | None) -> StrPath:
    """The folder of the run that `--run` names, or what `--model` names. Raises UsageError for both."""
    if model is None:
        return find_project().existing_run(run).path
    if run is not None:
        raise UsageError("--run cannot be used with --model", "each names the model", f"--model {model}")
    if not is_reference(model):
        why = "it is written NAME@ALIAS, NAME@v3 or NAME@DIGITS"
        raise UsageError(f"--model {model} names no version", why, "aifx registry ls")
    return model


def choose_other(text: str) -> tuple[StrPath, str | None]:
    """What "RUN", "RUN:STEP" or a model version names beside `--run` and `--model`, and the step."""
    if is_reference(text):
        return choose_model(None, text), None
    run, _, step = text.partition(":")
    return choose_model(run, None), step or None


def open_model(model: StrPath, trust_code: str | None = None) -> tuple[RunDirectory, Project]:
    """The run in a folder, or the version "fraud@production", which is pulled first; and the project around it.

    Args:
        trust_code: digest of a version whose own code may run.

    Raises UsageError, UntrustedCode, DamagedArtifact.
    """
    if not is_reference(model):
        if trust_code is not None:
            why = "the code of a run is that of its project"
            raise UsageError("--trust-code requires a model version", why, "name a version: NAME@ALIAS")
        return open_run(model)
    from aifx.registry.versions import open_stored

    root, project = open_registry(os.fspath(model))
    state, version = root.find(os.fspath(model))
    return open_stored(root, state, version, os.fspath(model), project, trust_code)


def pin_base(reference: str, project: Project, run: RunDirectory) -> str:
    """The version that `finetune.base` means, by its whole digest.

    A run that exists goes on with the version that it began with, also after the alias has moved, or if the registry
    does not answer.

    Args:
        project: with the registry that its configuration names.
        run: the one that is trained, or that it is forked from.

    Raises UsageError for a version that is not there, EnvironmentFault.
    """
    from aifx.kinds import read_config
    from aifx.registry.roots import is_alias
    from aifx.registry.versions import pinned_name

    name, _, word = reference.partition("@")
    began = read_config(run.config, project, environ={}).finetune.base_version if run.exists() else None
    try:
        pinned = pinned_name(reference, project)
    except AifxError as error:
        if began is None or began.partition("@")[0] != name:
            raise
        log.warning(
            "run %s goes on with its base %s, since %s cannot be found: %s", run.name, began, reference, error.what
        )
        return began
    if began is not None and began != pinned and began.partition("@")[0] == name and is_alias(word):
        log.warning("%s is another version now; run %s goes on with its base %s", reference, run.name, began)
        return began
    return pinned


def check_base(finetune: FinetuneSection, project: Project) -> None:
    """Raise UsageError, EnvironmentFault if the run or version that a training begins with is not there.

    Args:
        project: with the registry that its configuration names.
    """
    from aifx.registry.versions import pinned_name

    if finetune.base_run is not None:
        project.base_run(finetune.base_run)
    elif finetune.base_version is not None:
        pinned_name(finetune.base_version, project)


def open_registry(label: str) -> tuple[Root, Project]:
    """The registry of the project around the working directory, or that of ROOT_VARIABLE, and the project.

    Args:
        label: of the model that is looked for there.
    """
    from aifx.registry.roots import open_root

    project = project_around()
    if project is None:
        if (url := os.environ.get(ROOT_VARIABLE)) is None:
            why = f"the registry is not known outside of a project unless {ROOT_VARIABLE} is set"
            raise UsageError(f"the model {label} is not found", why, f"export {ROOT_VARIABLE}=FOLDER")
        return open_root(url), Project(Path.cwd())
    from aifx.kinds import load_config

    project = load_config(project).apply_to(project)
    return open_root(None, project), project


def is_vacant(label: str) -> bool:
    """Whether an alias, such as "fraud@production", means no version yet. Raises UsageError for what is no alias."""
    from aifx.registry.roots import check_alias, check_model_name
    from aifx.registry.state import ModelState

    if not is_reference(label):
        raise UsageError("--allow-first requires --against NAME@ALIAS", f"{label} is no alias", "leave it out")
    name, _, alias = label.partition("@")
    root, _ = open_registry(label)
    entries = root.ledger(check_model_name(name)).entries()
    return check_alias(alias) not in ModelState(name, entries).aliases
