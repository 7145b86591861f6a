"""The families, objectives and kinds of data that come with aifx, by name, and configurations that name them.

`config` knows none of them: this module hands their sections in. Importing it imports no family and no jax.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

import aifx.models
from aifx.config import load, schema
from aifx.config.kinds import Kinds
from aifx.config.parts import PARTS, Kind, Part, PartName, TaskParts, import_object
from aifx.config.sections import ObjectiveSection, Section, TaskSection
from aifx.core.errors import ConfigError, did_you_mean, nearest
from aifx.core.project import Project
from aifx.data.kinds import DATA_KINDS, DataKind
from aifx.models import Family
from aifx.objectives import OBJECTIVES, ObjectiveKind

TYPES: Mapping[PartName, type[Kind]] = {"model": Family, "objective": ObjectiveKind, "data": DataKind}
"""The type that `module:NAME` of a project's own must have, by section."""

TASKS: Mapping[str, Mapping[PartName, str]] = {
    "language": {"model": "decoder", "objective": "next-token", "data": "text"},
    "chat": {"model": "decoder", "objective": "sft", "data": "chat"},
    "preference": {"model": "decoder", "objective": "dpo", "data": "preferences"},
    "vision": {"model": "resnet", "objective": "classification", "data": "images"},
    "series": {"model": "series", "objective": "quantile", "data": "series"},
    "tabular": {"model": "tabular", "objective": "classification", "data": "table"},
}
"""The family, objective and kind of data of each `task.kind`."""


@functools.cache
def families() -> tuple[Family, ...]:
    """The families that come with aifx: each package in aifx/models is one."""
    packages = sorted(module.name for module in pkgutil.iter_modules(aifx.models.__path__) if module.ispkg)
    return tuple(importlib.import_module(f"aifx.models.{name}").FAMILY for name in packages)


def bundled(section: PartName) -> Mapping[str, Kind]:
    """The kinds of a section that come with aifx and that a project can name."""
    if section == "model":
        return {family.name: family for family in families() if family.is_trained}
    return OBJECTIVES if section == "objective" else DATA_KINDS


def task_parts(task: str, names: Mapping[PartName, str], project: Project) -> TaskParts:
    """The parts of a task. Raises ConfigError.

    Args:
        task: `task.kind`.
        names: `model.family`, `objective.kind` and `data.kind` by section, as far as they are set.
    """
    if ":" in task:
        return _own_task(task, project)
    if task not in TASKS:
        why = _known(task, TASKS, "module:Class")
        meant = next((name for name, parts in TASKS.items() if task in parts.values()), nearest(task, TASKS))
        why = f"did you mean {meant!r}?" if meant and meant != nearest(task, TASKS) else why
        hint = f'kind = "{meant or "language"}"'
        raise ConfigError(f"task.kind = {task!r} is not a task", why, hint)
    chosen = {**TASKS[task], **{section: name for section, name in names.items() if name}}
    kinds = {part.section: find_kind(part, chosen[part.section], project) for part in PARTS}
    return TaskParts(task, None, chosen, kinds, {section: kind.section for section, kind in kinds.items()})


def _known(name: str, names: Iterable[str], own_form: str) -> str:
    """The name that was meant, or all names, and how one of the project's own is written."""
    meant = did_you_mean(name, names)
    return f"{meant}{'' if meant.endswith('?') else '.'} One of your own is `{own_form}`"


def find_kind(part: Part, name: str, project: Project) -> Kind:
    """The family, objective or kind of data of this name. Raises ConfigError."""
    if ":" not in name:
        known = bundled(part.section)
        if name not in known:
            why = _known(name, known, "module:NAME")
            raise ConfigError(f"{part.path} = {name!r} is not known", why, f"aifx config keys {part.section}")
        return known[name]
    found, kind = import_object(part.path, name, project), TYPES[part.section]
    if not isinstance(found, kind):
        why = f"it is {found!r:.200}, not an aifx.extend.{kind.__name__}"
        raise ConfigError(f"{part.path} = {name!r} cannot be used", why, "docs/tasks.md has an example")
    if not (isinstance(found.section, type) and issubclass(found.section, part.base)):
        why = f"aifx reads [{part.section}] as that class says"
        hint = f"derive {found.section!r} from aifx.extend.{part.base.__name__}"
        raise ConfigError(f"{part.path} = {name!r}: its section is not a {part.base.__name__}", why, hint)
    return found


def _own_task(task: str, project: Project) -> TaskParts:
    cls = import_object("task.kind", task, project)
    if not isinstance(cls, type):
        named = (f"{part.path} = {task!r}" for part in PARTS if isinstance(cls, TYPES[part.section]))
        what, hint = f"task.kind = {task!r} is not a class", next(named, "docs/tasks.md")
        raise ConfigError(what, f"it is {cls!r:.200}", hint)
    sections: dict[PartName, type[Section]] = {}
    for part in PARTS:
        attribute, base = f"{part.section}_section", part.base.__name__
        section = getattr(cls, attribute, ObjectiveSection if part.section == "objective" else None)
        if not (isinstance(section, type) and issubclass(section, part.base)):
            raise ConfigError(
                f"task.kind = {task!r} has no {attribute}",
                f"a class attribute, a subclass of aifx.extend.{base}, defines the section's keys",
                f"{attribute} = MySection, or derive the class from aifx.extend.Task",
            )
        sections[part.section] = section
    return TaskParts(task, cls, {}, {}, sections)


def variant_names(values: Mapping[str, Any]) -> list[str]:
    """The names that select sections in a configuration, whose values are given by `section.key`."""
    task = values.get("task.kind", TaskSection().kind)
    return [str(values.get(part.path) or TASKS.get(task, {}).get(part.section, task)) for part in PARTS]


KINDS = Kinds(TASKS, bundled, task_parts)

# The functions of `config`, with the kinds of aifx.
load_config = functools.partial(load.load_config, KINDS)
read_config = functools.partial(load.read_config, KINDS)
make_config = functools.partial(load.make_config, KINDS)
project_sections = functools.partial(load.project_sections, KINDS)
project_code = functools.partial(load.project_code, KINDS)
settings = functools.partial(schema.settings, KINDS)
json_schema = functools.partial(schema.json_schema, KINDS)
