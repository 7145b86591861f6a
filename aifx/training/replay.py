"""Training again from a checkpoint, to see whether the same steps give the same state."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

from aifx.checkpoint.digest import array_digests
from aifx.checkpoint.inspection import Replay
from aifx.checkpoint.manifest import list_checkpoints, read_manifest
from aifx.config.project_errors import project_errors
from aifx.core.errors import ConfigError, UsageError
from aifx.core.progress import report_progress
from aifx.core.project import Project, RunDirectory
from aifx.core.steps import StepChoice
from aifx.data.order import prefetch
from aifx.kernels.choice import run_choices
from aifx.kinds import read_config
from aifx.machine.compilation_cache import enable_compilation_cache
from aifx.parallel.layout import local_layout
from aifx.programs.build import Programs, build
from aifx.runs.binding import binding_errors
from aifx.runs.provenance import differences, provenance, read_provenance
from aifx.tasks.base import data_digest, training_source
from aifx.tasks.registry import open_task
from aifx.training.hooks.guard import GuardState
from aifx.training.loop import StepFn
from aifx.training.restore import begin_at, with_kept_references
from aifx.training.state import to_tree


def choose_replayed(run: RunDirectory, project: Project, num_steps: int) -> StepChoice:
    """The newest checkpoint with another one `num_steps` later, otherwise the newest with as many steps after it."""
    steps = [info.step for info in list_checkpoints(run.checkpoints) if not info.damaged]
    last = read_config(run.config, project).train.num_steps
    possible = [step for step in steps if step + num_steps <= last]
    compared = [step for step in possible if step + num_steps in steps]
    return max(compared or possible, default="last")


def replay(run: RunDirectory, project: Project, step: int, num_steps: int) -> Replay:
    """Restore a checkpoint, train `num_steps` again, and compare the state with the run's checkpoint of that step.

    If the run has none, the steps are trained twice and the two states compared. Nothing is written into the run.

    Raises UsageError for steps that the run does not have, CheckpointError, ConfigError, DataError.
    """
    started = time.perf_counter()
    config, last = read_config(run.config, project), step + num_steps
    if last > config.train.num_steps:
        what = f"{num_steps} steps from step {step} end after the run's last, {config.train.num_steps}"
        raise UsageError(what, "", f"aifx ckpt verify STEP --replay {num_steps} --run {run.name}")
    manifest = read_manifest(run.checkpoints / str(step))
    for error in binding_errors(run, config, step, manifest.run):
        raise error
    enable_compilation_cache()
    task = open_task(config, project, run.assets)
    digest = data_digest(task, config)
    before = read_provenance(run)
    if before.get("data_digest") not in (None, digest):
        what = f"the data of run {run.name!r} has changed since it was started"
        raise ConfigError(what, "the same steps would read other rows", "restore the data")
    with project_errors(config.parts, project):
        layout = local_layout(config.train.devices, config.mesh)
        programs = build(config, task, layout, kernels=run_choices(run, config.kernels))
        compiled: StepFn = programs.train_step.lower().compile()
        saved = run.checkpoints / str(last)
        # The run may have gone back after `step`: the later checkpoint knows which batches it left out.
        guards = read_manifest(saved).host.get("guards") if saved.is_dir() else manifest.host.get("guards")
        left_out = GuardState.read(guards).left_out
        found = _digests_after(num_steps, step, programs, compiled, run, left_out)
        if saved.is_dir():
            expected = {name: entry.digest for name, entry in read_manifest(saved).arrays.items()}
        else:
            expected = _digests_after(num_steps, step, programs, compiled, run, left_out)
    now = provenance(project.root, data_digest=digest, devices=layout.devices)
    return Replay(
        to_step=last,
        compared_with="checkpoint" if saved.is_dir() else "second training",
        different_arrays=sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n)),
        changed=[str(change) for change in differences(before, now)] if before else [],
        duration_s=time.perf_counter() - started,
    )


def _digests_after(
    num_steps: int,
    step: int,
    programs: Programs,
    compiled: StepFn,
    run: RunDirectory,
    left_out: Sequence[int],
) -> dict[str, str]:
    """The digests of the state's arrays, by name, `num_steps` after the checkpoint of `step`."""
    initial = begin_at(step, programs, run)
    programs = with_kept_references(programs, initial.frozen, run, None)
    rows = programs.config.train.global_batch_size
    source, local = training_source(programs.task, programs.config), programs.layout.local_rows(rows)
    state = initial.state
    with (
        closing(prefetch(source, range(step, step + num_steps), local, left_out=left_out)) as batches,
        report_progress(f"training again from step {step}", num_steps, "steps") as progress,
    ):
        for batch in batches:
            state, _ = compiled(state, initial.frozen, programs.place(batch, rows))
            progress.advance(1)
    return array_digests(to_tree(state, stacked=programs.is_stacked))
