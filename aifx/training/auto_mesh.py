"""The mesh of a run with `mesh.auto`: the one that it has, or that `aifx plan --fit` finds."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Literal

import jax

from aifx.config import Config
from aifx.config.sections import MeshSection
from aifx.config.toml import Origin
from aifx.core.errors import AifxError, ConfigError, EnvironmentFault
from aifx.core.project import Project, RunDirectory
from aifx.kernels.verification import may_have_accelerator
from aifx.models.sections import LayeredSection
from aifx.parallel.group import Group
from aifx.parallel.layout import local_layout
from aifx.parallel.mesh import AXES, Degrees
from aifx.parallel.processes import detect_here
from aifx.planning.hardware import Hardware, hardware_of
from aifx.planning.plan import Plan
from aifx.planning.planner import make_plans
from aifx.planning.step_time import Assumptions
from aifx.planning.work import apply_settings
from aifx.training.resume_checks import saved_config
from jax_kernels.trials import Failure, TrialProcess

logger = logging.getLogger(__name__)

OPEN_S = 300.0
"""Limit of opening the devices."""


def with_found_mesh(config: Config, run: RunDirectory, project: Project, group: Group | None = None) -> Config:
    """The configuration with the mesh that `mesh.auto` asks for, the same in each process of a job.

    A run that goes on keeps its mesh, unless that makes up another number of devices. Raises ConfigError if nothing
    fits.
    """
    group = group or Group()
    group.mark("the search for a mesh")
    found = group.gather(own_devices(config.train.devices, run))
    settings = _find(config, run, project, hardware_of_all(found)) if group.is_first else None
    return with_settings(config, group.broadcast(settings))


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with these settings instead of `mesh.auto`."""
    found = {"mesh.auto": False, **settings}
    origins = {**config.origins, **dict.fromkeys(found, Origin("auto", "mesh.auto"))}
    return dataclasses.replace(apply_settings(config, found), origins=origins)


def own_devices(asked: int | Literal["all"], run: RunDirectory) -> dict[str, Any]:
    """The devices of this process, as JSON: "platform", "kind", "count" and "slices". `asked`: `train.devices`.

    A new run tries kernels in other processes before this one opens an accelerator, and the chips of a TPU belong to
    one process. So another process looks at them. Raises ConfigError, EnvironmentFault.
    """
    if run.kernels.exists() or not may_have_accelerator():
        return _open_devices(asked)
    me = detect_here()
    try:
        with TrialProcess(_open_gpus) as child:
            found = child.do((asked, me and me.local_devices), OPEN_S)
    except ChildProcessError as error:
        found = Failure(str(error))
    if isinstance(found, Failure):
        raise EnvironmentFault("the devices cannot be opened", found.why, "aifx doctor")
    if isinstance(found, AifxError):
        raise found
    return dict(found)


def _open_gpus(asked: tuple[int | Literal["all"], tuple[int, ...] | None]) -> dict[str, Any] | AifxError:
    """`_open_devices` in another process, of those GPUs that are this one's share; None are all."""
    devices, share = asked
    if share is not None:
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, share)))
    try:
        return _open_devices(devices)
    except AifxError as error:
        return error


def _open_devices(devices: int | Literal["all"]) -> dict[str, Any]:
    layout = local_layout(devices)
    own = [device for device in layout.devices if device.process_index == jax.process_index()]
    slices = sorted({getattr(device, "slice_index", 0) for device in own})
    return {"platform": layout.platform, "kind": layout.device_kind, "count": len(own), "slices": slices}


def hardware_of_all(found: list[dict[str, Any]]) -> Hardware:
    """The devices of all processes, from the `own_devices` of each."""
    slices = {index for one in found for index in one["slices"]}
    return hardware_of(found[0]["platform"], found[0]["kind"], sum(one["count"] for one in found), len(slices))


def _find(config: Config, run: RunDirectory, project: Project, hardware: Hardware) -> dict[str, Any]:
    """{"mesh.fsdp": 8, "train.gradient_accumulation": 1, "model.remat": "none"}."""
    before = saved_config(run, project)
    if before is not None and _makes_up(before.mesh, hardware.num_devices):
        settings: dict[str, Any] = {f"mesh.{axis}": getattr(before.mesh, axis) for axis in AXES}
        settings["train.gradient_accumulation"] = before.train.gradient_accumulation
        if isinstance(before.model, LayeredSection) and isinstance(config.model, LayeredSection):
            settings["model.remat"] = before.model.remat
        return settings
    logger.info(f"mesh.auto: looking for the mesh of {hardware.num_devices} devices")
    return _search(config, project, hardware)


def _makes_up(mesh: MeshSection, num_devices: int) -> bool:
    try:
        Degrees.of(mesh, num_devices)
    except ConfigError:
        return False
    return not mesh.auto


def _search(config: Config, project: Project, hardware: Hardware) -> dict[str, Any]:
    (plan,) = make_plans(project, config, [hardware], Assumptions(), fit=True).plans
    assert isinstance(plan, Plan)  # what a single plan fails with is raised
    if not plan.fits:
        why = "; ".join(plan.notes) or "no mesh, accumulation and remat need little enough memory"
        raise ConfigError("mesh.auto = true, and nothing fits", why, "aifx plan --fit")
    if plan.settings["train.global_batch_size"] != config.train.global_batch_size:
        batch = plan.settings["train.global_batch_size"]
        what = f"mesh.auto = true, and no mesh of {hardware.num_devices} devices divides this model and its batch"
        why = f"train.global_batch_size is {config.train.global_batch_size}"
        raise ConfigError(what, why, f"aifx train --set train.global_batch_size={batch}")
    settings = {key: value for key, value in plan.settings.items() if key != "train.global_batch_size"}
    logger.info(f"mesh.auto found {', '.join(f'{key} = {value}' for key, value in settings.items())}")
    return settings
