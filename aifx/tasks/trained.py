"""A run's model as it stands in a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aifx.checkpoint.manifest import read_manifest
from aifx.config import Config, read_config
from aifx.core.errors import CheckpointError, UsageError
from aifx.core.files import check_tree
from aifx.core.project import Project, RunDirectory
from aifx.nn.stacking import has_stacked_layers, stack_layers, unstack_layers
from aifx.runs.binding import binding_errors
from aifx.specs import Params, map_specs
from aifx.tasks.base import Model, Task
from aifx.tasks.registry import create_task, load_task, task_class

if TYPE_CHECKING:
    from aifx.data import Tokenizer
    from aifx.models.decoder.model import Decoder

logger = logging.getLogger(__name__)

Which = Literal["best", "last"]

CURRENT = ("eval", "generate")
"""Sections that say what is done with a trained model: a gate that was changed since counts."""


@dataclass(frozen=True)
class RestoredRun:
    """A task with the parameters that a run reached at `step`."""

    run: RunDirectory
    config: Config
    task: Task
    params: Params
    step: int


def restore_run(
    run: RunDirectory,
    project: Project,
    *,
    step: int | None = None,
    which: Which | None = None,
    overrides: Sequence[str] = (),
    with_data: bool = True,
) -> RestoredRun:
    """Open a run's task and restore its parameters, nothing else of the state.

    Args:
        step: the checkpoint of that step; else `which`, else `eval.checkpoint`.
        overrides: `--set` strings over the run's configuration and the project's sections CURRENT.
        with_data: open the data that the run was trained on, too.

    Raises CheckpointError where there is no such checkpoint or it is damaged.
    """
    from aifx.machine.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    config = read_config(run.config, project, overrides, current=CURRENT)
    at = choose_step(run, config, step, which)
    check_files(run, project, at)
    task = (create_task if with_data else load_task)(config, project, run.assets)
    return RestoredRun(run, config, task, restore_params(run, config, at, task.model), at)


@dataclass(frozen=True)
class LoadedGenerator:
    """A trained decoder with its tokenizer: what writes text."""

    run: RunDirectory
    config: Config
    model: Decoder
    tokenizer: Tokenizer
    params: Params
    step: int


def load_generator(
    run: RunDirectory,
    project: Project,
    *,
    step: int | None = None,
    which: Which | None = None,
    overrides: Sequence[str] = (),
) -> LoadedGenerator:
    """Open a run's language model from the run alone: the data that it learnt from need not be there any more.

    Takes what `restore_run` takes and raises what it raises; UsageError where the run's task has no language model.
    """
    from aifx.machine.compilation_cache import enable_compilation_cache
    from aifx.tasks.language import LanguageTask

    enable_compilation_cache()
    config = read_config(run.config, project, overrides, current=CURRENT)
    if not issubclass(task_class(config.task.kind, project), LanguageTask):
        kind = config.task.kind
        why = f"its task is {kind}; a language model writes"
        raise UsageError(f"run {run.name} cannot write text", why, f"aifx eval --run {run.name}")
    at = choose_step(run, config, step, which)
    check_files(run, project, at)
    task = load_task(config, project, run.assets)
    assert isinstance(task, LanguageTask)
    tokenizer, model = task.tokenizer, task.model
    return LoadedGenerator(run, config, model, tokenizer, restore_params(run, config, at, model), at)


def check_files(run: RunDirectory, project: Project, step: int) -> None:
    """Raises CheckpointError if a file of the run is not what the checkpoint of `step` was trained with."""
    check_tree(run.assets)
    bound = read_manifest(run.checkpoints / str(step)).run
    for error in binding_errors(run, read_config(run.config, project), step, bound):
        raise error


def restore_params(run: RunDirectory, config: Config, step: int, model: Model) -> Params:
    """The parameters of a checkpoint as `model` takes them. Raises CheckpointError."""
    from aifx.checkpoint import Checkpoints  # here, so that training does not wait for orbax before its first step

    specs = model.specs()
    stacked = has_stacked_layers(specs)
    structs = map_specs(lambda s: s.struct, specs)
    structs = unstack_layers(structs) if stacked else structs
    params: Params = Checkpoints(run.checkpoints, config.checkpoint).restore_params(step, structs)
    return stack_layers(params) if stacked else params


def choose_step(run: RunDirectory, config: Config, step: int | None, which: Which | None) -> int:
    """Return the step to open; "best" is the newest if no checkpoint was validated.

    Reports the damaged checkpoints that cannot be the best one. Raises CheckpointError.
    """
    from aifx.checkpoint import Checkpoints

    checkpoints = Checkpoints(run.checkpoints, config.checkpoint)
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(
            f"no checkpoint in {run.checkpoints}", "the run saved nothing yet", f"aifx train --run {run.name}"
        )
    if step is not None:
        if step not in steps:
            there = ", ".join(map(str, steps))
            raise CheckpointError(
                f"run {run.name} has no checkpoint of step {step}", f"it has {there}", f"aifx ckpt ls --run {run.name}"
            )
        return step
    best = checkpoints.best() if (which or config.eval.checkpoint) == "best" else None
    if best is None:
        return steps[-1]
    for info in checkpoints.infos():
        if info.damaged:
            logger.warning(f"the checkpoint of step {info.step} is damaged ({info.damaged}); it cannot be the best one")
    return best
