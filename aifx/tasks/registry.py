"""The task of a configuration: the parts that it names, or a class of the project's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aifx.config import Config
from aifx.config.parts import PartName, TaskParts, import_object, resolve
from aifx.config.project_errors import project_errors
from aifx.config.sections import DataSection
from aifx.core.errors import AifxError, ConfigError, DataError
from aifx.core.project import CONFIG_NAME, Project
from aifx.data.base import DataFormat
from aifx.data.spec import DataSpec, need_spec
from aifx.models.adapted import adapted_model
from aifx.models.base import Decodes, Model
from aifx.objectives.base import Objective
from aifx.specs import ArraySpec
from aifx.tasks.base import Task
from aifx.tasks.ensemble import Ensemble

WRITING = ("vocab_size", "max_seq_len", "page_size", "cache_specs", "extend", "decode")
"""Attributes that a model that derives from `Decodes` must define in addition to those of every model."""

REQUIRED: tuple[tuple[str, PartName, tuple[str, ...]], ...] = (
    ("model", "model", ("specs", "hidden", "head", "flops")),
    ("objective", "objective", ("sums", "metrics", "unit", "check_data")),
    ("data", "data", ("fields",)),
    ("format", "data", ("spec", "read_rows", "encode")),
    ("dataset", "data", ("spec", "digest", "source", "counts")),
)
"""The attributes of `Task`, each with the section that selects it and what it must define."""


def open_task(config: Config, project: Project, assets: Path) -> Task:
    """The task of a project, its data opened. Raises ConfigError, DataError."""
    project = config.apply_to(project)
    if config.parts.task is not None:
        return _own("open", config, project, assets)
    with project_errors(config.parts, project):
        try:
            form, folds = _make(config.parts, "data", project), config.train.folds
            opened = form.open(config.data, project, assets, *([folds] if folds > 1 else []))
        except DataError as error:
            raise _missing_file(config.data, project) or error from None
        if not (isinstance(opened, tuple) and len(opened) == 2):
            raise _wrong_part(
                config.parts, "data", f"open returned {type(opened).__name__}, not a format and a data set"
            )
        form, dataset = opened
        return _joined(config, project, form.spec, form, dataset)


def _missing_file(data: DataSection, project: Project) -> AifxError | None:
    """The error of a file of data that is not there, which names the key and where aifx looked."""
    found = data.check_files(project)
    return next((error for key, error in found if key != "data.tokenizer"), None)  # which may be that of a base run


def load_task(config: Config, project: Project, assets: Path) -> Task:
    """The task of a trained run, without its training data if it can do without. Raises ConfigError, DataError."""
    spec, project = need_spec(assets), config.apply_to(project)
    if config.parts.task is not None:
        return _own("load", config, project, assets)
    with project_errors(config.parts, project):
        form = _make(config.parts, "data", project).load(config.data, spec, assets)
        return _joined(config, project, form.spec, form)


def describe_task(config: Config, project: Project) -> Task:
    """The task of a project without its data. Raises ConfigError that names the missing key."""
    project = config.apply_to(project)
    if config.parts.task is not None:
        return _own("describe", config, project)
    with project_errors(config.parts, project):
        return _joined(config, project, _make(config.parts, "data", project).describe(config.data, project), None)


def data_summary(parts: TaskParts, data: DataSection, project: Project) -> list[str]:
    """Lines about the data of a project. Raises AifxError."""
    if parts.task is not None:
        return []
    with project_errors(parts, project):
        form = _make(parts, "data", project)
        return form.summary(data, project) if isinstance(form, type) and issubclass(form, DataFormat) else []


def describe_or_open_task(config: Config, project: Project, assets: Path) -> Task:
    """`describe_task`, or `open_task` if the configuration does not say all that a model must know of the data."""
    try:
        return describe_task(config, project)
    except ConfigError:
        return open_task(config, project, assets)


def _make(parts: TaskParts, section: PartName, project: Project) -> Any:
    """The function or class of a part."""
    make = parts.kinds[section].make
    if isinstance(make, str) and ":" in parts.names[section]:
        return import_object(f"{parts.named(section)}: make", make, project)
    return resolve(make)


def _joined(config: Config, project: Project, spec: DataSpec, form: DataFormat | None, dataset: Any = None) -> Task:
    make = _make(config.parts, "model", project)
    objective = _make(config.parts, "objective", project)(config.objective)
    of_model = objective.model_data(spec) if isinstance(objective, Objective) else spec
    try:
        model = make(config.model, of_model)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        if ":" in config.parts.names["model"]:
            raise
        fields = [f"{name} {field.dtype} {list(field.shape)}" for name, field in spec.fields.items()]
        why = f"{type(error).__name__}: {error}; the data has {', '.join(fields) or 'no fields'}"
        hint = "change model.family or data.kind: docs/tasks.md"
        raise ConfigError(f"{config.parts.named('model')} does not fit the data", why, hint) from error
    return _checked(config, Task(model, objective, spec, form, dataset))


def _own(method: str, config: Config, project: Project, *assets: Path) -> Task:
    cls: Any = config.parts.task
    if not issubclass(cls, Task):
        raise _wrong_part(config.parts, "model", f"{cls.__name__} is not an aifx.extend.Task")
    with project_errors(config.parts, project, f"{cls.__name__}.{method}"):
        task = getattr(cls, method)(config, project, *assets)
    if not isinstance(task, Task):
        raise _wrong_part(config.parts, "model", f"{cls.__name__}.{method} returned {type(task).__name__}")
    with project_errors(config.parts, project):
        return _checked(config, task)


def _checked(config: Config, task: Task) -> Task:
    """The task. Raises ConfigError if a part lacks what it must define, or does not fit the data."""
    for attribute, section, names in REQUIRED:
        part = getattr(task, attribute)
        if part is None and attribute in ("format", "dataset"):
            continue
        names += WRITING if Decodes in type(part).__mro__ else ()
        if lacking := [name for name in names if not _defines(part, name)]:
            raise _wrong_part(config.parts, section, f"{type(part).__name__} lacks {', '.join(lacking)}")
    name = type(task.model).__name__
    if not isinstance(task.model, Model):
        raise _wrong_part(config.parts, "model", f"{name} does not derive from aifx.extend.Model")
    if odd := _odd_spec(task.model.specs()):
        raise _wrong_part(config.parts, "model", f"{name}.specs returned {odd}; it returns nested dicts of ArraySpec")
    if isinstance(flops := task.model.flops(1), bool) or not isinstance(flops, int | float):
        raise _wrong_part(config.parts, "model", f"{name}.flops returned {type(flops).__name__}, not a number")
    task.objective.check_data(task.data)
    if (folds := config.train.folds) > 1:
        return replace(task, model=Ensemble(task.model, task.objective, folds))
    return replace(task, model=adapted_model(task.model, config.finetune, config.lora))


def _odd_spec(specs: Any, path: str = "") -> str:
    """A description of a node that is neither a dict nor an ArraySpec in a tree of specs; empty if there is none."""
    if isinstance(specs, ArraySpec):
        return ""
    if isinstance(specs, Mapping):
        return next((odd for key, node in specs.items() if (odd := _odd_spec(node, f"{path}/{key}"))), "")
    return f"{type(specs).__name__} at {path}" if path else type(specs).__name__


def _defines(part: Any, name: str) -> bool:
    """Whether a part has `name` of its own: what it inherits from a protocol does nothing, `Objective.sums` raises."""
    found = getattr(type(part), name, None)
    declared = [vars(kind).get(name) for kind in (Model, Decodes)]
    return hasattr(part, name) and (found is None or found not in (*declared, Objective.sums))


def _wrong_part(parts: TaskParts, section: PartName, why: str) -> ConfigError:
    what = f"{CONFIG_NAME}: {parts.named(section)} cannot be used"
    return ConfigError(what, why, "docs/tasks.md has an example")
