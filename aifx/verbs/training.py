"""Training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core import lifecycle
from aifx.core.errors import UsageError
from aifx.core.progress import listen
from aifx.core.project import Project, find_project
from aifx.core.requests import find_request
from aifx.core.statuses import ProcessStatus
from aifx.core.steps import parse_step
from aifx.training.hook import Hook
from aifx.verbs.arguments import Settings, Step, StrPath, overrides
from aifx.verbs.jobs import is_first_of_job
from aifx.verbs.models import pin_base

if TYPE_CHECKING:
    from aifx.config.config import Config
    from aifx.core.stop_signals import StopSignals
    from aifx.training.records import Record, RunInfo, TrainResult

OnExit = Callable[[ProcessStatus | None, str, Callable[[], "TrainResult"]], None]
"""Called right before the process ends without unwinding: with the run's status (None: failed), a line on why, and a
function that reads from the disk how far the run is."""


def train(
    project: StrPath = ".",
    run: str = "main",
    *,
    config: StrPath | None = None,
    settings: Settings = None,
    fork_from: str | None = None,
    fork_at: Step = None,
    refit: bool = False,
    profile: bool = False,
    hooks: Sequence[Hook] = (),
    stop: StopSignals | None = None,
    on_exit: OnExit | None = None,
    request: str | None = None,
) -> TrainResult:
    """Train a run to its end, from its last checkpoint if it has one.

    A loss that is not finite is a result with the status "diverged". Ctrl-C raises KeyboardInterrupt; the next call
    resumes from the last checkpoint.

    Args:
        project: a folder in the project.
        run: name of the run to start or to resume.
        config: a file to read instead of the project's `aifx.toml`.
        settings: values over those of the file, by key: `{"train.num_steps": 100}`.
        fork_from: start the run from a checkpoint of this one.
        fork_at: which checkpoint: a step, "best" or "last"; by default the last.
        refit: train the settings of the finished run `run` on its training and validation rows, as the run `RUN-refit`.
        profile: trace a few steps with JAX's profiler, into the run.
        hooks: called for the run's records and events, in addition to `train.hooks`: `aifx.extend.Hook`. All processes
            of a job give the same ones.
        stop: handles signals. By default none is handled.
        on_exit: called if a second signal, or the loss of another process, ends this process at once.
        request: an id. A run that was asked for with it goes on, whatever `run` is; once it has ended by itself, the
            result is the first one, and nothing is done.

    Example:
        >>> result = aifx.train(settings={"train.num_steps": 3})
        >>> result.status, result.step
        ('completed', 3)
        >>> forked = aifx.train(run="other", fork_from="main", fork_at=3, settings={"train.num_steps": 4})
        >>> forked.step
        4
    """
    is_first, at = is_first_of_job(warn_if_lone=True), parse_step(fork_at)
    if at not in (None, "last") and fork_from is None:
        why = "a run resumes from its latest checkpoint; only a fork starts from another one"
        hint = f"aifx train --run {run} --fork NAME --step {fork_at}"
        raise UsageError(f"--step {fork_at} can only be used with --fork", why, hint)
    other = "--fork" if fork_from is not None else "--config" if config is not None else None
    if refit and other is not None:
        why = "a refit is a new run with the settings of its origin"
        hint = f"aifx train --run {fork_from or run} --refit"
        raise UsageError(f"--refit and {other} cannot be used together", why, hint)
    act = "train" if fork_from is None else f"train --run {fork_from} --fork"
    asked = find_request(request, f"train --run {run} --refit" if refit else act)
    from aifx.kinds import load_config
    from aifx.runs.records import process_started_at
    from aifx.runs.requests import find_asked
    from aifx.training.records import TrainResult
    from aifx.training.resume_checks import latest_result, open_refit
    from aifx.training.run import train as train_run

    found, given = find_project(Path(project)), overrides(settings)
    name = f"{run}-refit" if refit else run
    if asked is not None and (before := find_asked(found, asked)) is not None:
        begun, kept = before
        if kept.outcome is not None:
            return TrainResult.repeated(begun, kept.outcome)
        name, fork_from = begun.name, None if begun.exists() else fork_from
    refitted = open_refit(found.existing_run(run), found, given) if refit else None
    file = None if config is None else Path(config)
    chosen = refitted.config if refitted else load_config(found, given, file=file)
    if (reference := chosen.finetune.base_version) is not None:
        base = pin_base(reference, chosen.apply_to(found), found.run(fork_from or name))
        chosen = refitted.config if refitted else load_config(found, [*given, f"finetune.base={base}"], file=file)
    run_training = partial(
        train_run,
        found,
        chosen,
        name,
        fork_from=fork_from,
        fork_at="last" if at is None else at,
        refit=refitted,
        hooks=hooks,
        stop=stop,
        profile=profile,
        started_at=process_started_at() if lifecycle.is_entered() else None,
        request=asked,
    )
    if is_first:
        _renew_lease(chosen.apply_to(found), getattr(chosen.data, "dataset", None), name)
    if stop is not None and on_exit is not None:

        def end(status: ProcessStatus | None, why: str) -> None:
            on_exit(
                status, why, lambda: replace(latest_result(found.run(name), status or "interrupted"), request=request)
            )

        stop.before_exit[:] = [end]
    if is_first:
        return run_training()
    with listen(lambda _: None):  # one process of a job reports its progress
        return run_training()


def _renew_lease(project: Project, reference: str | None, run: str) -> None:
    """Say on the root of the data sets, if other projects share it, which version the run is about to read."""
    if reference is None:
        return
    from aifx.data.versions.catalog import open_catalog
    from aifx.data.versions.leases import Use, is_shared

    catalog = open_catalog(project.datasets, project)
    if is_shared(catalog.store, project):
        from aifx.verbs.referrers import renew

        renew(catalog, project, Use(reference, f"run {run}"))
