"""A run's model as it stands in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aifx.config import Config, read_config
from aifx.errors import CheckpointError
from aifx.nn.specs import Params, map_specs
from aifx.nn.stacking import stack_layers, unstack_layers
from aifx.project import Project, RunDirectory
from aifx.tasks.base import Say, Task
from aifx.tasks.registry import create_task

if TYPE_CHECKING:
    from aifx.checkpoint import Checkpoints

Which = Literal["best", "last"]


@dataclass(frozen=True)
class Trained:
    """A task with the parameters that a run reached at `step`."""

    run: RunDirectory
    config: Config
    task: Task
    params: Params
    step: int


def open_trained(
    run: RunDirectory,
    project: Project,
    *,
    step: int | None = None,
    which: Which | None = None,
    overrides: Sequence[str] = (),
    say: Say,
) -> Trained:
    """Open a run's task and restore its parameters, nothing else of the state.

    Args:
        step: the checkpoint of that step; else `which`, else `eval.checkpoint` of the run's configuration.
        overrides: `--set` strings over the run's configuration.

    Raises CheckpointError where there is no such checkpoint or it is damaged.
    """
    from aifx.checkpoint import Checkpoints  # here, so that training does not wait for orbax before its first step
    from aifx.train.compilation_cache import enable_compilation_cache

    enable_compilation_cache(say)
    config = read_config(run.config, project, overrides)
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint)
    try:
        at = choose_step(checkpoints, run, step, which or config.eval.checkpoint)
        task = create_task(config, project, run.assets, say=say)
        structs = map_specs(lambda s: s.struct, task.model.specs())
        params = checkpoints.restore_params(at, unstack_layers(structs))
    finally:
        checkpoints.close()
    return Trained(
        run, config, task, stack_layers(params) if getattr(config.model, "scan_layers", False) else params, at
    )


def choose_step(checkpoints: Checkpoints, run: RunDirectory, step: int | None, which: Which) -> int:
    """The step to open. "best" is the newest where no checkpoint was validated."""
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
    best = checkpoints.best() if which == "best" else None
    return best if best is not None else steps[-1]
