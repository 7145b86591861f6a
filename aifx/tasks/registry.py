"""From a configuration to a task: the parts that it names, or a class of the project's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from aifx.config import Config
from aifx.config.kinds import resolve
from aifx.core.errors import ConfigError
from aifx.core.project import CONFIG_NAME, Project
from aifx.data.base import DataFormat
from aifx.data.spec import DataSpec, need_spec
from aifx.tasks.base import Task
from aifx.tasks.project_errors import project_errors


def open_task(config: Config, project: Project, assets: Path) -> Task:
    """The task of a project, its data opened. Raises ConfigError, DataError."""
    if config.parts.task is not None:
        return _own("open", config, project, assets)
    form, dataset = resolve(config.parts.data.make).open(config.data, project, assets)
    return replace(_joined(config, form.spec, form), dataset=dataset)


def load_task(config: Config, project: Project, assets: Path) -> Task:
    """The task of a trained run, without the data that it was trained on if the task can do without.

    Raises ConfigError, DataError.
    """
    spec = need_spec(assets)
    if config.parts.task is not None:
        return _own("load", config, project, assets)
    form = resolve(config.parts.data.make).load(config.data, spec, assets)
    return _joined(config, form.spec, form)


def describe_task(config: Config, project: Project) -> Task:
    """The task of a project without its data. Raises ConfigError that names the missing key."""
    if config.parts.task is not None:
        return _own("describe", config, project)
    return _joined(config, resolve(config.parts.data.make).describe(config.data, project), None)


def describe_or_open_task(config: Config, project: Project, assets: Path) -> Task:
    """`describe_task`, or `open_task` if the configuration does not say all that a model must know of the data."""
    try:
        return describe_task(config, project)
    except ConfigError:
        return open_task(config, project, assets)


def _joined(config: Config, spec: DataSpec, form: DataFormat | None) -> Task:
    model = resolve(config.parts.family.make)(config.model, spec)
    objective = resolve(config.parts.objective.make)(config.objective)
    return Task(model, objective, spec, form)


def _own(method: str, config: Config, project: Project, *assets: Path) -> Task:
    cls: Any = config.parts.task
    kind = config.task.kind
    if not issubclass(cls, Task):
        raise _not_a_task(kind, f"{cls.__name__} is no aifx.tasks.Task")
    with project_errors(config, project, f"{cls.__name__}.{method}"):
        try:
            task = getattr(cls, method)(config, project, *assets)
        except NotImplementedError as error:
            raise _not_a_task(kind, f"it does not define {error or method}") from error
    if not isinstance(task, Task):
        raise _not_a_task(kind, f"{cls.__name__}.{method} returned {type(task).__name__}")
    lacking = [f"model.{name}" for name in ("specs", "hidden", "head", "flops") if not hasattr(task.model, name)]
    lacking += [f"objective.{name}" for name in ("sums", "metrics", "unit") if not hasattr(task.objective, name)]
    if lacking:
        raise _not_a_task(kind, f"it lacks {', '.join(lacking)}")
    return task


def _not_a_task(kind: str, why: str) -> ConfigError:
    hint = "derive it from aifx.tasks.Task; docs/tasks.md has an example"
    return ConfigError(f"{CONFIG_NAME}: task.kind = {kind!r} is not a whole task", why, hint)
