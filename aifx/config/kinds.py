"""The names that `aifx.toml` may use, and the keys of its sections that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from aifx.config.config import SECTION_NAMES, SECTION_TYPES
from aifx.config.foreign_keys import own_key
from aifx.config.parts import PART_NAMES, Kind, PartName, TaskParts
from aifx.config.sections import Section
from aifx.core.project import Project

FindParts: TypeAlias = Callable[[str, Mapping[PartName, str], Project], TaskParts]


@dataclass(frozen=True)
class Kinds:
    """Families, objectives, kinds of data and tasks by name. `aifx/kinds.py` has those that come with aifx.

    Attributes:
        tasks: the family, objective and kind of data of each `task.kind`.
        bundled: those that a configuration can name without `module:NAME`, for one section.
        task_parts: the parts of a `task.kind`, given `model.family`, `objective.kind` and `data.kind` by section as far
            as they are set. Raises ConfigError.
    """

    tasks: Mapping[str, Mapping[PartName, str]]
    bundled: Callable[[PartName], Mapping[str, Kind]]
    task_parts: FindParts

    def section_models(self, section: str) -> tuple[type[Section], ...]:
        """The types that a section of `aifx.toml` may have: one, or one for each variant that comes with aifx."""
        for part in PART_NAMES:
            if part == section:
                return tuple(kind.section for kind in self.bundled(part).values())
        return (SECTION_TYPES[section],)

    def sections_with(self, key: str) -> list[str]:
        """The sections that have this key, of the bundled tasks."""
        return [name for name in SECTION_NAMES if any(key in model.model_fields for model in self.section_models(name))]

    def full_keys(self) -> set[str]:
        """Every key of the bundled tasks, with its section."""
        models = ((name, model) for name in SECTION_NAMES for model in self.section_models(name))
        return {f"{name}.{key}" for name, model in models for key in model.model_fields}

    def settings_named(self, word: str) -> list[str]:
        """The keys, with their sections, that `word` names: one of aifx's own, or another tool's name for one."""
        key = word.replace("-", "_")
        if key in SECTION_NAMES:
            return []
        known = self.full_keys()
        ours = own_key("", key, known)
        own = [key] if key in known else [f"{home}.{key}" for home in self.sections_with(key)]
        return list(dict.fromkeys([*([ours] if ours else []), *own]))
