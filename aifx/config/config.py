"""The configuration of a run: every value, and where each came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from aifx.config.origins import DEFAULT, Origin, OriginKind
from aifx.config.registry import PARTS, TaskParts, variants
from aifx.config.sections import (
    RESUME_SAFE,
    ROUNDING,
    CheckpointSection,
    EvalSection,
    GenerateSection,
    KernelsSection,
    LogSection,
    MeshSection,
    OptimizerSection,
    ProjectSection,
    ScheduleSection,
    Section,
    TaskSection,
    TrainSection,
)


@dataclass(frozen=True)
class Difference:
    """A key (`train.seed`) whose value differs between two configurations; None if a side does not have it."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} = {json.dumps(self.old)} -> {json.dumps(self.new)}"


@dataclass(frozen=True)
class Config:
    """One section of `aifx.toml` an attribute. Equal when the values are, wherever they came from."""

    project: ProjectSection
    task: TaskSection
    model: Section
    objective: Section
    data: Section
    train: TrainSection
    mesh: MeshSection
    optimizer: OptimizerSection
    schedule: ScheduleSection
    checkpoint: CheckpointSection
    eval: EvalSection
    kernels: KernelsSection
    log: LogSection
    generate: GenerateSection
    parts: TaskParts = field(compare=False, repr=False)
    origins: Mapping[str, Origin] = field(compare=False, repr=False)

    def sections(self) -> Iterator[tuple[str, Section]]:
        """Name and model of each section, in the order in which they are written."""
        for name in SECTION_NAMES:
            yield name, getattr(self, name)

    def values(self) -> dict[str, dict[str, Any]]:
        """Every value by section and key, as JSON has it: tuples are lists, None is null."""
        return {name: section.model_dump(mode="json") for name, section in self.sections()}

    def origin(self, key: str) -> Origin:
        """Where the value of `section.key` came from."""
        return self.origins.get(key, DEFAULT)

    def all_origins(self) -> dict[str, dict[str, str]]:
        """Where every value came from, by section and key."""
        return {
            name: {key: self.origin(f"{name}.{key}").where for key in type(section).model_fields}
            for name, section in self.sections()
        }

    def precedence(self, key: str) -> int:
        """How far the origin of `section.key` goes over others: 0 is a default, the most is `--set`."""
        return get_args(OriginKind).index(self.origin(key).kind)

    def to_toml(self, *, origins: bool = True) -> str:
        """The whole configuration as TOML that `read_config` reads back to an equal one; each origin a comment."""
        from aifx.config.toml import to_toml

        return to_toml(self.values(), self.origin if origins else None)


SECTION_NAMES = tuple(f.name for f in fields(Config) if f.name not in ("parts", "origins"))
PART_NAMES = tuple(part.section for part in PARTS)
"""Sections whose keys depend on the task."""
_SECTION_TYPES: dict[str, type[Section]] = get_type_hints(Config)


def section_models(section: str) -> tuple[type[Section], ...]:
    """The types that a section of `aifx.toml` may have: one, or one for each variant that comes with aifx."""
    if section in PART_NAMES:
        return tuple(model for part, _, model in variants() if part.section == section)
    return (_SECTION_TYPES[section],)


def compare(old: Config, new: Config) -> list[Difference]:
    """What differs and matters: every key but those that may change between a run and its resumption."""
    return [difference for difference, extra in _differences(old, new) if not is_marked(extra, RESUME_SAFE)]


def compare_free(old: Config, new: Config) -> list[Difference]:
    """What differs and may, since it changes no number of a run or at most how its numbers are rounded."""
    return [difference for difference, extra in _differences(old, new) if is_marked(extra, RESUME_SAFE)]


def compare_rounding(old: Config, new: Config) -> list[Difference]:
    """What differs and may, and changes how the numbers of a run are rounded."""
    return [difference for difference, extra in _differences(old, new) if is_marked(extra, ROUNDING)]


def number_settings(config: Config) -> dict[str, Any]:
    """The values that change the numbers of a run, by key and as JSON has them: every key that is not RESUME_SAFE."""
    values = config.values()
    return {
        f"{name}.{key}": json.loads(json.dumps(values[name].get(key)))
        for name, section in config.sections()
        for key, info in type(section).model_fields.items()
        if not is_marked(info.json_schema_extra, RESUME_SAFE)
    }


def setting_default(config: Config, key: str) -> Any:
    """The default of `section.key` as JSON has it; None if it has none."""
    name, _, field_name = key.partition(".")
    info = type(getattr(config, name)).model_fields[field_name]
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return json.loads(json.dumps(default, default=str))


def is_marked(extra: Any, mark: Mapping[str, Any]) -> bool:
    """Whether a field's `json_schema_extra` bears a mark: RESUME_SAFE, or ROUNDING, which is RESUME_SAFE as well."""
    return isinstance(extra, Mapping) and mark.items() <= extra.items()


def _differences(old: Config, new: Config) -> Iterator[tuple[Difference, Any]]:
    """Each key whose value differs, with its field's `json_schema_extra`."""
    olds, news = old.values(), new.values()
    for name in SECTION_NAMES:
        known = {**getattr(old, name).__class__.model_fields, **getattr(new, name).__class__.model_fields}
        for key, info in known.items():
            before, after = olds[name].get(key), news[name].get(key)
            if before != after:
                yield Difference(f"{name}.{key}", before, after), info.json_schema_extra
