"""The parts of a task that a configuration selects by name, each with a section of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from aifx.config.sections import DataSection, ModelSection, ObjectiveSection, Section

PartName: TypeAlias = Literal["model", "objective", "data"]

Make = str | Callable[..., Any]
"""A function or class, or its place as "module:name", which is imported when it is needed."""


class Part(NamedTuple):
    """A section of `aifx.toml` whose keys depend on a name, the key that holds this name, and the section's base."""

    section: PartName
    key: str
    base: type[Section]

    @property
    def path(self) -> str:
        return f"{self.section}.{self.key}"


PARTS = (
    Part("model", "family", ModelSection),
    Part("objective", "kind", ObjectiveSection),
    Part("data", "kind", DataSection),
)
PART_NAMES = tuple(part.section for part in PARTS)


@dataclass(frozen=True)
class Kind:
    """The family, objective or kind of data that a name in `aifx.toml` selects.

    Attributes:
        section: the type of the section that holds the name.
        presets: values of this section, by the name of the preset.
    """

    name: str
    section: type[Section]
    make: Make
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskParts:
    """The parts of the configuration of a task.

    Attributes:
        kind: `task.kind`.
        task: the class that `task.kind = "module:Class"` names; otherwise None.
        names: what selects family, objective and kind of data, set or by the task, by section; empty with a class.
        kinds: family, objective and kind of data by section; empty with a class.
        sections: the type of each of these sections.
    """

    kind: str
    task: type[Any] | None
    names: Mapping[PartName, str]
    kinds: Mapping[PartName, Kind]
    sections: Mapping[PartName, type[Section]]

    def named(self, section: PartName) -> str:
        """The key that selects the model, the objective or the data, and its value: for errors."""
        if self.task is not None:
            return f"task.kind = {self.kind!r}"
        return next(f"{part.path} = {self.names[section]!r}" for part in PARTS if part.section == section)


def resolve(make: Make) -> Any:
    """The function or class behind `make`."""
    if not isinstance(make, str):
        return make
    module, _, name = make.partition(":")
    return getattr(importlib.import_module(module), name)
