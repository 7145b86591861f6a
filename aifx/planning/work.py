"""A task on some hardware: what is counted and compiled for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aifx.config import Config
from aifx.config.parts import resolve
from aifx.config.sections import MeshSection
from aifx.models.adapted import adapted_model
from aifx.models.sections import LayeredSection
from aifx.parallel.layout import Layout
from aifx.planning.counting import Counted, count, count_activations, described_layout, with_traced_step
from aifx.planning.hardware import Hardware
from aifx.programs.build import Programs, build
from aifx.tasks.base import Task


@dataclass
class Work:
    """A task on some hardware, which is counted for a plan.

    Attributes:
        asked: implementations by op, where the one that would run can't be traced here.
    """

    task: Task
    hardware: Hardware
    asked: dict[str, str] = field(default_factory=dict)
    _kept: dict[Any, int] = field(default_factory=dict)  # activations without rematerialization, by mesh and batch

    def count(self, config: Config, *, alone: bool = False) -> Counted:
        """The counts on the mesh of the configuration; on one device with the whole batch if `alone`."""
        try:
            return self._count(config, alone)
        except RuntimeError as error:  # JAX's own type
            if "cuDNN" not in str(error):
                raise
            self.asked = {"attention": "pallas_triton"}
            return self._count(config, alone)

    def trace(self, config: Config, counted: Counted) -> Counted:
        """With the operations and the collectives of the traced step, where these were estimated."""
        return with_traced_step(counted, config, with_model(self.task, config), self._layout(config.mesh), self.asked)

    def programs(self, config: Config) -> Programs:
        """The programs on the mesh of the configuration, not to be compiled.

        Raises ConfigError if the mesh does not divide the model.
        """
        return build(config, with_model(self.task, config), self._layout(config.mesh))

    def _layout(self, mesh: MeshSection) -> Layout:
        hardware = self.hardware
        return described_layout(mesh, hardware.num_devices, hardware.platform, hardware.device_kind)

    def _count(self, config: Config, alone: bool) -> Counted:
        layout = self._layout(config.mesh).single if alone else self._layout(config.mesh)
        counted = count(config, with_model(self.task, config), layout, self.asked)
        rows = layout.degrees, config.train.global_batch_size, config.train.gradient_accumulation
        if not isinstance(config.model, LayeredSection) or config.model.remat == "none":
            self._kept[rows] = counted.activations
            return counted
        if rows not in self._kept:
            plain = apply_settings(config, {"model.remat": "none"})
            self._kept[rows] = count_activations(plain, with_model(self.task, plain), layout, self.asked)
        # Recomputed activations are moved as often as kept ones, and once more.
        return replace(counted, touched=4 * self._kept[rows] // 3)


def with_model(task: Task, config: Config) -> Task:
    """The task with the model that `config` describes; of a project's own class as it is."""
    if config.parts.task is not None:
        return task
    model = resolve(config.parts.kinds["model"].make)(config.model, task.data)
    return replace(task, model=adapted_model(model, config.finetune, config.lora))


def with_scanned_layers(config: Config, hardware: Hardware) -> Config:
    """For an accelerator, layers in a loop: ten times as quick to compile, with the same arrays."""
    if hardware.platform == "cpu" or not isinstance(config.model, LayeredSection) or config.model.scan_layers:
        return config
    return replace(config, model=config.model.model_copy(update={"scan_layers": True}))


def apply_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with other values: {"train.global_batch_size": 64}."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    changed = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return replace(config, **changed)
