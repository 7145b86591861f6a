"""The configuration of a project, and of its runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aifx.core.errors import AifxError, UsageError, did_you_mean
from aifx.core.project import find_project
from aifx.core.results import Result
from aifx.verbs.arguments import Settings, StrPath, overrides

if TYPE_CHECKING:
    from aifx.config import Config
    from aifx.config.schema import Own, Setting, SettingList

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownConfig(Result):
    """Document of `aifx config show --json`: values by section and key, with their origins if --origin is given."""

    config: dict[str, dict[str, Any]]
    origins: dict[str, dict[str, str]] | None


@dataclass(frozen=True)
class CheckedConfig(Result):
    """Document of `aifx config check --json` if there is no mistake."""

    valid: Literal[True]
    path: str
    task: str
    data: list[str]  # lines about the data: the columns of a table


def config_show(
    *, run: str | None = None, settings: Settings = None, origin: bool = False, project: StrPath = "."
) -> ShownConfig:
    """Read the configuration of a project or of a run.

    This imports a task of the project's own, which runs its code.

    Args:
        run: name of the run; by default the configuration is that of aifx.toml.
        settings: values over those of the configuration, by key.
        origin: also the origin of each value.
        project: a folder in the project.

    Example:
        >>> aifx.config_show(settings={"train.num_steps": 40}).config["train"]["num_steps"]
        40
    """
    config = _load(project, run, settings)
    values = config.values()
    origins = {
        section: {key: config.origin(f"{section}.{key}").where for key in keys} for section, keys in values.items()
    }
    return ShownConfig(values, origins if origin else None)


def config_toml(
    *, run: str | None = None, settings: Settings = None, origin: bool = False, project: StrPath = "."
) -> str:
    """Write the configuration of a project or of a run as TOML.

    The arguments are those of `config_show`.

    Example:
        >>> "num_steps = 3" in aifx.config_toml()
        True
    """
    return _load(project, run, settings).to_toml(origins=origin)


def config_check(*, settings: Settings = None, project: StrPath = ".") -> CheckedConfig:
    """Check aifx.toml and the files that it names. Raises ConfigError with every mistake and its line.

    Args:
        settings: values over those of the configuration, by key.
        project: a folder in the project.

    Example:
        >>> aifx.config_check().task
        'language'
    """
    from aifx.config.checks import warn_of_warmup
    from aifx.tasks.preflight import check_project
    from aifx.tasks.registry import data_summary

    config, found = _load(project, None, settings), find_project(Path(project))
    check_project(config, found)
    if config.finetune.base_version is not None:
        from aifx.training.prepare import find_base

        find_base(config, found, None)
    for name in config.train.hooks:
        from aifx.training.hooks.project import find_hook  # here, since few projects have any

        log.info("importing %s from %s", name, found.root)
        find_hook(name, found)
    if config.datasets.readers:
        from aifx.data.readers.own import find_readers

        log.info("importing %s from %s", ", ".join(config.datasets.readers), found.root)
        find_readers(config.datasets.readers, found)
    if config.datasets.license_allow:
        from aifx.data.versions.licenses import allowed_licenses

        allowed_licenses(config.datasets.license_allow)
    warn_of_warmup(config.schedule, config.train.num_steps)
    data = data_summary(config.parts, config.data, config.apply_to(found))
    return CheckedConfig(True, str(found.config_path), config.task.kind, data)


def config_schema(*, project: StrPath = ".") -> dict[str, Any]:
    """Make the JSON Schema of aifx.toml, for completion and checks in editors.

    Inside a project with a task, family, objective or data of its own, it includes their keys. This imports their
    modules.

    Args:
        project: a folder, which need not be in a project.

    Example:
        >>> "train" in aifx.config_schema()["properties"]
        True
    """
    from aifx.kinds import json_schema

    return json_schema(_own_sections(project))


def config_keys(section: str | None = None, *, project: StrPath = ".") -> SettingList:
    """List the keys of aifx.toml with their values, defaults and meanings.

    Inside a project with a task, family, objective or data of its own, it includes their keys. This imports their
    modules.

    Args:
        section: list only the keys of this section.
        project: a folder, which need not be in a project.

    Example:
        >>> [key.default for key in aifx.config_keys("checkpoint").keys if key.key == "keep_last"]
        [2]
    """
    from aifx.config.config import SECTION_NAMES
    from aifx.config.parts import PART_NAMES
    from aifx.config.schema import SettingList
    from aifx.kinds import settings

    if section is not None and section not in SECTION_NAMES:
        raise UsageError(f"no section [{section}]", did_you_mean(section, SECTION_NAMES), "aifx config keys")
    own = _own_sections(project) if section in (None, *PART_NAMES) else None
    return SettingList([setting for setting in settings(own) if section in (None, setting.section)])


def _own_sections(folder: StrPath) -> Own | None:
    """The sections of the project's own code. Outside of a project there are none; code that fails is reported."""
    from aifx.kinds import project_code, project_sections

    try:
        project = find_project(Path(folder))
    except UsageError:
        return None
    try:
        for name in project_code(project.config_path):
            log.info("importing %s from %s", name, project.root)
        return project_sections(project)
    except AifxError as error:
        log.info("without the keys of the project's own code: %s: %s", error.what, error.why)
        return None


def _load(folder: StrPath, run: str | None, settings: Settings) -> Config:
    from aifx.kinds import load_config, project_code, read_config

    project, given = find_project(Path(folder)), overrides(settings)
    path = project.config_path if run is None else project.existing_run(run).config
    for name in project_code(path, given):
        log.info("importing %s from %s", name, project.root)
    return load_config(project, given) if run is None else read_config(path, project, given)
