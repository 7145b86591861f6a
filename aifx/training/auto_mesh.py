"""The mesh of a run with `mesh.auto`: the one that it has, or that `aifx plan --fit` finds."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from aifx.config import Config
from aifx.core.errors import ConfigError
from aifx.core.project import Project, RunDirectory
from aifx.parallel.group import Group
from aifx.parallel.layout import Layout, local_layout
from aifx.parallel.mesh import AXES, Degrees
from aifx.planning.hardware import hardware_of_layout
from aifx.planning.plan import Assumptions, Plan
from aifx.planning.planner import make_plans
from aifx.planning.work import apply_settings
from aifx.training.resume_checks import saved_config

logger = logging.getLogger(__name__)


def with_found_mesh(config: Config, run: RunDirectory, project: Project, group: Group | None = None) -> Config:
    """The configuration with the mesh that `mesh.auto` asks for, the same in each process of a job.

    A run that goes on keeps its mesh, unless that makes up another number of devices. Raises ConfigError if nothing
    fits.
    """
    group = group or Group()
    layout = local_layout(config.train.devices)  # in each process: they tell each other of their devices
    return with_settings(config, group.broadcast(_find(config, run, project, layout) if group.is_first else None))


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with these settings instead of `mesh.auto`."""
    changed = apply_settings(config, {"mesh.auto": False, **settings})
    origin = config.origin("mesh.auto")
    return dataclasses.replace(changed, origins={**config.origins, **dict.fromkeys(settings, origin)})


def _find(config: Config, run: RunDirectory, project: Project, layout: Layout) -> dict[str, Any]:
    """{"mesh.fsdp": 8, "train.gradient_accumulation": 1, "model.remat": "none"}."""
    before = saved_config(run, project)
    if before is not None and _makes_up(before, layout.num_devices):
        settings: dict[str, Any] = {f"mesh.{axis}": getattr(before.mesh, axis) for axis in AXES}
        settings["train.gradient_accumulation"] = before.train.gradient_accumulation
        if hasattr(before.model, "remat") and hasattr(config.model, "remat"):
            settings["model.remat"] = before.model.remat
        return settings
    logger.info(f"mesh.auto: looking for the mesh of {layout.num_devices} devices")
    return _search(config, project, layout)


def _makes_up(config: Config, num_devices: int) -> bool:
    try:
        Degrees.of(config.mesh, num_devices)
    except ConfigError:
        return False
    return not config.mesh.auto


def _search(config: Config, project: Project, layout: Layout) -> dict[str, Any]:
    (plan,) = make_plans(project, config, [hardware_of_layout(layout)], Assumptions(), fit=True).plans
    assert isinstance(plan, Plan)  # what a single plan fails with is raised
    if not plan.fits:
        why = "; ".join(plan.notes) or "no mesh, accumulation and remat need little enough memory"
        raise ConfigError("mesh.auto = true, and nothing fits", why, "aifx plan --fit")
    if plan.settings["train.global_batch_size"] != config.train.global_batch_size:
        batch = plan.settings["train.global_batch_size"]
        what = f"mesh.auto = true, and no mesh of {layout.num_devices} devices divides this model and its batch"
        why = f"train.global_batch_size is {config.train.global_batch_size}"
        raise ConfigError(what, why, f"aifx train --set train.global_batch_size={batch}")
    settings = {key: value for key, value in plan.settings.items() if key != "train.global_batch_size"}
    logger.info(f"mesh.auto found {', '.join(f'{key} = {value}' for key, value in settings.items())}")
    return settings
