"""The configuration of a run: every value with its origin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from aifx.config import sections as section_types
from aifx.config.launch_section import KubernetesSection, LaunchSection, SlurmSection
from aifx.config.parts import TaskParts
from aifx.config.sections import (
    RESUME_SAFE,
    ModelSection,
    Section,
    is_marked,
)
from aifx.config.serve_section import ServeSection
from aifx.config.toml import DEFAULT, Origin, OriginKind, to_toml
from aifx.core.project import Project


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

    project: section_types.ProjectSection
    task: section_types.TaskSection
    model: ModelSection
    objective: section_types.ObjectiveSection
    data: section_types.DataSection
    datasets: section_types.DatasetsSection
    registry: section_types.RegistrySection
    monitor: section_types.MonitorSection
    augment: section_types.AugmentSection
    train: section_types.TrainSection
    mesh: section_types.MeshSection
    processes: section_types.ProcessesSection
    optimizer: section_types.OptimizerSection
    schedule: section_types.ScheduleSection
    finetune: section_types.FinetuneSection
    lora: section_types.LoraSection
    guards: section_types.GuardsSection
    checkpoint: section_types.CheckpointSection
    eval: section_types.EvalSection
    kernels: section_types.KernelsSection
    log: section_types.LogSection
    generate: section_types.GenerateSection
    serve: ServeSection
    costs: section_types.CostsSection
    launch: LaunchSection
    slurm: SlurmSection
    k8s: KubernetesSection
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
        """The origin of the value of `section.key`."""
        return self.origins.get(key, DEFAULT)

    def precedence(self, key: str) -> int:
        """The rank of the origin of `section.key`: 0 is a default, the highest is `--set`."""
        return get_args(OriginKind).index(self.origin(key).kind)

    def apply_to(self, project: Project) -> Project:
        """The project with what this configuration says of it: where data sets and models are, and allowed licences."""
        section = self.datasets
        return replace(
            project,
            datasets=section.root,
            registry=self.registry.root,
            trusted_keys=self.registry.trusted_keys,
            license_allow=section.license_allow,
            license_conflicts=section.license_conflicts,
        )

    def to_toml(self, *, origins: bool = True) -> str:
        """The whole configuration as TOML that `read_config` reads back to an equal one; each origin a comment."""
        return to_toml(self.values(), self.origin if origins else None)


SECTION_NAMES = tuple(f.name for f in fields(Config) if f.name not in ("parts", "origins"))
SECTION_TYPES: Mapping[str, type[Section]] = get_type_hints(Config)
"""The type of each section; of `[model]`, `[objective]` and `[data]`, the base of what a task has."""


def compare(old: Config, new: Config, mark: Mapping[str, Any] | None = None) -> list[Difference]:
    """The differences between two configurations.

    Args:
        mark: only of the keys that bear this mark, RESUME_SAFE or ROUNDING. By default what may not change between a
            run and its resumption.
    """
    olds, news = old.values(), new.values()
    found = []
    for name in SECTION_NAMES:
        for key, info in {**type(getattr(old, name)).model_fields, **type(getattr(new, name)).model_fields}.items():
            before, after = olds[name].get(key), news[name].get(key)
            is_free = is_marked(info.json_schema_extra, RESUME_SAFE)
            is_asked = is_marked(info.json_schema_extra, mark) if mark else not is_free
            if before != after and is_asked:
                found.append(Difference(f"{name}.{key}", before, after))
    return found


def model_differences(old: ModelSection, new: ModelSection) -> list[Difference]:
    """The keys of `[model]` that differ and with which the models compute different things from the same weights.

    Sizes of tables are left out, and all keys if the families differ: then the shapes of the weights differ as well,
    and those are compared when the weights are read.
    """
    if type(old) is not type(new):
        return []
    olds, news = old.model_dump(mode="json"), new.model_dump(mode="json")
    found = [key for key in old.differences(new) if key not in ("vocab_size", "max_seq_len")]
    return [Difference(f"model.{key}", olds[key], news[key]) for key in found if olds[key] != news[key]]


def number_settings(config: Config) -> dict[str, Any]:
    """The values that change the numbers of a run, by key and as JSON has them: every key that is not RESUME_SAFE."""
    values = config.values()
    return {
        f"{name}.{key}": values[name].get(key)
        for name, section in config.sections()
        for key, info in type(section).model_fields.items()
        if not is_marked(info.json_schema_extra, RESUME_SAFE)
    }
