"""From the names in `aifx.toml` to a family, an objective and a kind of data. Imports no jax."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from aifx.config.kinds import DataKind, Family, Kind, ObjectiveKind
from aifx.config.project_code import import_object
from aifx.config.sections import DataSection, ModelSection, ObjectiveSection, Section
from aifx.core.errors import ConfigError, did_you_mean, nearest
from aifx.core.project import Project

PartName: TypeAlias = Literal["model", "objective", "data"]


class Part(NamedTuple):
    """A section of `aifx.toml` whose keys depend on a name, and the key that holds this name."""

    section: PartName
    key: str
    kind: type[Kind]
    base: type[Section]

    @property
    def path(self) -> str:
        return f"{self.section}.{self.key}"


PARTS = (
    Part("model", "family", Family, ModelSection),
    Part("objective", "kind", ObjectiveKind, ObjectiveSection),
    Part("data", "kind", DataKind, DataSection),
)

TASKS: Mapping[str, Mapping[PartName, str]] = {
    "language": {"model": "decoder", "objective": "next-token", "data": "text"},
    "chat": {"model": "decoder", "objective": "sft", "data": "chat"},
    "preference": {"model": "decoder", "objective": "dpo", "data": "preferences"},
    "vision": {"model": "resnet", "objective": "classification", "data": "images"},
    "series": {"model": "series", "objective": "quantile", "data": "series"},
    "tabular": {"model": "tabular", "objective": "classification", "data": "table"},
}
"""The family, objective and kind of data of each `task.kind`."""


@dataclass(frozen=True)
class TaskParts:
    """What the configuration of a task consists of.

    Attributes:
        task: the class that `task.kind = "module:Class"` names; otherwise None.
        names: what selects family, objective and kind of data, set or by the task, by section; empty with a class.
        kinds: family, objective and kind of data by section; empty with a class.
        sections: the type of each of these sections.
    """

    task: type[Any] | None
    names: Mapping[PartName, str]
    kinds: Mapping[PartName, Kind]
    sections: Mapping[PartName, type[Section]]

    @property
    def objective(self) -> ObjectiveKind:
        objective = self.kinds["objective"]
        assert isinstance(objective, ObjectiveKind)
        return objective


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
    return TaskParts(None, chosen, kinds, {section: kind.section for section, kind in kinds.items()})


def _known(name: str, names: Iterable[str], own_form: str) -> str:
    """The name that was meant, or all names, and how one of the project's own is written."""
    meant = did_you_mean(name, names)
    return f"{meant}{'' if meant.endswith('?') else '.'} One of your own is `{own_form}`"


def find_kind(part: Part, name: str, project: Project) -> Kind:
    """The family, objective or kind of data of this name. Raises ConfigError."""
    if ":" not in name:
        if name not in bundled(part):
            why = _known(name, bundled(part), "module:NAME")
            raise ConfigError(f"{part.path} = {name!r} is not known", why, f"aifx config keys {part.section}")
        return bundled(part)[name]
    found = import_object(part.path, name, project)
    if not isinstance(found, part.kind):
        why = f"it is {found!r:.200}, not an aifx.config.kinds.{part.kind.__name__}"
        raise ConfigError(f"{part.path} = {name!r} cannot be used", why, "docs/tasks.md has an example")
    if not (isinstance(found.section, type) and issubclass(found.section, part.base)):
        why = f"aifx reads [{part.section}] as that class says"
        hint = f"derive {found.section!r} from aifx.config.sections.{part.base.__name__}"
        raise ConfigError(f"{part.path} = {name!r}: its section is not a {part.base.__name__}", why, hint)
    return found


@functools.cache
def bundled(part: Part) -> Mapping[str, Kind]:
    """What comes with aifx and a project can name, by name."""
    if part.section == "objective":
        return importlib.import_module("aifx.objectives").OBJECTIVES  # type: ignore[no-any-return]
    if part.section == "data":
        return importlib.import_module("aifx.data.kinds").KINDS  # type: ignore[no-any-return]
    return {family.name: family for family in families() if family.is_trained}


def families() -> list[Family]:
    """The families that come with aifx: each package in aifx/models is one."""
    models = importlib.import_module("aifx.models")
    packages = [m.name for m in pkgutil.iter_modules(models.__path__) if m.ispkg]
    return [importlib.import_module(f"aifx.models.{name}").FAMILY for name in sorted(packages)]


def _own_task(task: str, project: Project) -> TaskParts:
    cls = import_object("task.kind", task, project)
    if not isinstance(cls, type):
        hint = next((f"{part.path} = {task!r}" for part in PARTS if isinstance(cls, part.kind)), "docs/tasks.md")
        raise ConfigError(f"task.kind = {task!r} is not a class", f"it is {cls!r:.200}", hint)
    sections: dict[PartName, type[Section]] = {}
    for part in PARTS:
        attribute, base = f"{part.section}_section", part.base.__name__
        section = getattr(cls, attribute, ObjectiveSection if part.section == "objective" else None)
        if not (isinstance(section, type) and issubclass(section, part.base)):
            raise ConfigError(
                f"task.kind = {task!r} has no {attribute}",
                f"a class attribute, a subclass of aifx.config.sections.{base}, defines the section's keys",
                f"{attribute} = MySection, or derive the class from aifx.tasks.Task",
            )
        sections[part.section] = section
    return TaskParts(cls, {}, {}, sections)


def variant_names(values: Mapping[str, Any]) -> list[str]:
    """The names that select sections in a configuration, whose values are given by `section.key`."""
    task = values.get("task.kind", "language")
    return [str(values.get(part.path) or TASKS.get(task, {}).get(part.section, task)) for part in PARTS]
