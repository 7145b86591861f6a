"""The model of a run, from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax

from aifx.checkpoint.manifest import Manifest, read_manifest
from aifx.checkpoint.naming import flat_names, from_named, nest
from aifx.config import Config
from aifx.config.project_errors import project_errors
from aifx.config.sections import MeshSection, Quantization
from aifx.core.errors import CheckpointError, ConfigError, UsageError
from aifx.core.files import check_tree
from aifx.core.project import Project, RunDirectory
from aifx.core.steps import StepChoice
from aifx.kernels.choice import run_choices
from aifx.kinds import read_config
from aifx.loading.steps import choose_step
from aifx.machine.compilation_cache import enable_compilation_cache
from aifx.models.adapted import AdaptedModel
from aifx.nn.quantized import quantize_matrices
from aifx.nn.stacking import stack_layers, unstack_layers
from aifx.parallel.joining import current_group
from aifx.parallel.layout import Layout, local_layout
from aifx.programs.build import Programs, build
from aifx.registry.versions import ModelDirectory
from aifx.runs.agreement import agree, facts_of_program, share_choices
from aifx.runs.binding import binding_errors
from aifx.specs import Params
from aifx.tasks.base import Task
from aifx.tasks.registry import load_task

logger = logging.getLogger(__name__)

CURRENT = ("eval", "generate", "monitor", "serve")
"""Sections that say what is done with a trained model: a gate that was changed since counts."""

OpenTask: TypeAlias = Callable[[Config, Project, Path], Task]
"""Makes a task of a run's configuration, its project and its assets."""


@dataclass(frozen=True)
class RestoredRun:
    """A task with the arrays that a run reached at `step`."""

    run: RunDirectory  # of a model version, a ModelDirectory
    project: Project
    config: Config
    task: Task
    params: Params  # weights (averaged, with optimizer.ema_decay) and buffers; layers that are scanned are stacked
    frozen: Params  # the arrays that training does not change
    step: int
    layout: Layout  # where they are
    manifest: Manifest  # of the checkpoint

    @property
    def digest(self) -> str:
        """The digest of the model version, or of the checkpoint's arrays."""
        return self.run.model_digest or self.manifest.state_digest

    def programs(self, quantize: Quantization) -> tuple[Programs, Params, Params]:
        """The programs of the run on its devices, and parameters and frozen arrays as these take them.

        The processes of a job get the same programs. Raises UsageError if the model's matrices are to be quantized and
        it is not one that writes, and Disagreement if a process would evaluate otherwise.
        """
        kernels, group = run_choices(self.run, self.config.kernels), current_group()
        programs = build(self.config, self.task, self.layout, kernels=kernels)
        if quantize == "none":
            share_choices(group, kernels, programs.eval_step.trace)
            agree(group, lambda: facts_of_program(programs.eval_step.lower(), kernels))
            return programs, self.params, self.frozen
        if not programs.can_decode:
            why = f"it is for language models, and {self.config.parts.named('model')} does not define decode"
            hint = f"aifx eval {self.run.option} --set eval.quantize=none"
            raise UsageError(f"eval.quantize = {quantize}", why, hint)
        if jax.process_count() > 1:
            why = "a quantized matrix is not divided, so one device computes"
            hint = f"aifx eval {self.run.option} --set eval.quantize={quantize}, as one process"
            raise UsageError(f"eval.quantize = {quantize}, in a job of {jax.process_count()} processes", why, hint)
        if self.layout.num_devices > 1:  # a quantized matrix is not divided
            programs = replace(programs, layout=local_layout(1))
        arrays = jax.device_put((self.params, self.frozen), programs.layout.devices[0])
        merged, plain = programs.merged(*arrays), programs.plain
        return replace(plain, casts=False), quantize_matrices(merged, plain.specs, quantize), {}


def restore_run(
    run: RunDirectory,
    project: Project,
    *,
    step: StepChoice | None = None,
    overrides: Sequence[str] = (),
    open_task: OpenTask = load_task,
) -> RestoredRun:
    """Open a run's task and restore its parameters, nothing else of the state.

    Args:
        run: or a model version.
        step: which checkpoint; by default `eval.checkpoint`.
        overrides: `--set` strings over the run's configuration and the project's sections CURRENT.
        open_task: by default without any data: the run alone is needed.

    Raises CheckpointError if there is no such checkpoint, it is damaged, or a file of the run is not what it names.
    """
    enable_compilation_cache()
    config = read_current(run, project, overrides)
    at = step if isinstance(run, ModelDirectory) else choose_step(run, config, step)
    manifest = verified_manifest(run, project, at)
    task = open_task(config, project, run.assets)
    with project_errors(config.parts, project):
        layout = layout_here(config.mesh, config.train.devices)
        params, frozen = restore_params(build(config, task, layout), run, manifest.step)
        thresholds = (manifest.host.get("progress") or {}).get("thresholds") or {}
        task = replace(task, objective=task.objective.with_thresholds(thresholds))
    return RestoredRun(run, project, config, task, params, frozen, manifest.step, layout, manifest)


def read_current(run: RunDirectory, project: Project, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a trained model, with what the project says of its use now. Raises ConfigError.

    A model version names no files of data, so those are the project's as well.
    """
    if isinstance(run, ModelDirectory):
        current = (*CURRENT, *run.files)
        return read_config(run.config, project, [*run.layout, *overrides], current=current)
    return read_config(run.config, project, overrides, current=CURRENT)


def verified_manifest(run: RunDirectory, project: Project, step: StepChoice | None) -> Manifest:
    """The manifest of the checkpoint to open, once the files of the run are those that it names.

    Args:
        step: of a checkpoint (`choose_step`); None for a model version.
    """
    if isinstance(run, ModelDirectory):  # which `open_version` verified
        if step is not None:
            raise UsageError("--step cannot be used with --model", "a model version is one checkpoint", "--run NAME")
        return run.content.manifest()
    assert isinstance(step, int)
    check_tree(run.assets)
    manifest = read_manifest(run.checkpoints / str(step))
    for error in binding_errors(run, read_config(run.config, project), step, manifest.run):
        raise error
    return manifest


def layout_here(mesh: MeshSection, devices: int | Literal["all"]) -> Layout:
    """The layout of a run; over all devices of this machine if it has not those that the run asks for.

    These divide the parameters if those of the run did.
    """
    try:
        return local_layout(devices, mesh)
    except ConfigError as error:
        divides = mesh.fsdp != 1 or mesh.tensor != 1
        layout = local_layout(mesh=MeshSection(fsdp=-1) if divides else None)
        logger.info(f"{error.what}: the run's model is used on {layout.degrees}")
        return layout


def restore_params(programs: Programs, run: RunDirectory, step: int) -> tuple[Params, Params]:
    """The parameters of a checkpoint as the programs take them, and the frozen arrays. Raises CheckpointError.

    With `optimizer.ema_decay` the weights are the averaged ones.
    """
    # Here, so that training does not wait for TensorStore before its first step.
    from aifx.checkpoint.checkpoints import Checkpoints
    from aifx.loading.base_weights import frozen_arrays, read_stored

    part = "ema" if programs.has_ema else "params"
    structs, stacked = programs.abstract[0].evaluated, programs.is_stacked
    wanted = {part: unstack_layers(structs) if stacked else structs}
    host: Mapping[str, Any]
    if isinstance(run, ModelDirectory):
        tree = {part: from_named(nest(read_stored(run, 0, flat_names(wanted[part]))), wanted[part])}
        host = run.content.manifest().host
    else:
        tree, host = Checkpoints(run.checkpoints, programs.config.checkpoint).restore(step, wanted)
    frozen = frozen_arrays(programs, run)
    check_frozen(programs, frozen, host, run, step)
    places = jax.tree.map(lambda x: x.sharding, structs)
    return jax.device_put(stack_layers(tree[part]), places) if stacked else tree[part], frozen


def digest_of_frozen(programs: Programs, frozen: Params) -> str | None:
    """The digest that a checkpoint has of frozen arrays, which it does not hold; it names a base run instead."""
    from aifx.checkpoint.digest import state_digest

    return state_digest(frozen) if frozen and not isinstance(programs.model, AdaptedModel) else None


def check_frozen(programs: Programs, frozen: Params, host: Mapping[str, Any], run: RunDirectory, step: int) -> None:
    """Raise CheckpointError unless the frozen arrays are those that the checkpoint was trained with."""
    if host.get("frozen_digest") != digest_of_frozen(programs, frozen):
        raise CheckpointError(
            f"the frozen arrays of run {run.name} are not those of its checkpoint of step {step}",
            "a checkpoint does not hold them; they follow from the model and train.seed",
            f"aifx config show --run {run.name}",
        )
