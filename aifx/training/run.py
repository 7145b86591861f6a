"""The training of a run, from a project and a configuration: the work before the loop and after it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import jax

from aifx.checkpoint.manifest import step_directories
from aifx.config import Config
from aifx.config.best_by import AUTO, best_by_of, with_best_by
from aifx.config.project_errors import project_errors
from aifx.core.errors import AifxError, ConfigError, DataError, EnvironmentFault, ExitCode
from aifx.core.files import remove_temporary
from aifx.core.json_files import readable_bytes, write_text
from aifx.core.logs import log_lines
from aifx.core.os_errors import FULL, first_line, refusal_in
from aifx.core.project import Project, RunDirectory
from aifx.core.requests import Request
from aifx.core.statuses import STOPPED, ProcessStatus
from aifx.core.steps import StepChoice
from aifx.core.stop_signals import StopSignals
from aifx.data.order import prefetch
from aifx.kinds import read_config
from aifx.loading.restore import digest_of_frozen
from aifx.machine.catalogue import peak_of
from aifx.machine.device_memory import is_out_of_memory, peak_memory
from aifx.machine.measured_peaks import measured_peak
from aifx.parallel.group import Group, Limits, PeerLost
from aifx.parallel.joining import current_group, joined, restore_stdout
from aifx.parallel.layout import local_layout
from aifx.programs.build import Programs
from aifx.runs.agreement import agree, check_shared, facts_of_program, facts_of_start, share_choices
from aifx.runs.lock import hold_run
from aifx.runs.records import TimeAccount
from aifx.runs.requests import finish_request, keep_request
from aifx.runs.status import ending_before
from aifx.specs import Params
from aifx.tasks.base import training_source
from aifx.tasks.preflight import check_best_by
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.hooks.guard import Guard, NotFinite, Rollback, report_divergence
from aifx.training.hooks.metrics_server import open_metrics_server
from aifx.training.hooks.project import open_hooks, shared_hooks, steering_hooks
from aifx.training.hooks.run_files import LogFile, MetricsFile, Trace
from aifx.training.hooks.saving import Saving
from aifx.training.hooks.step_timing import StepTiming
from aifx.training.hooks.stop_vote import StopVote
from aifx.training.hooks.trackers import open_trackers
from aifx.training.hooks.validation import EarlyStopping, Progress, Sampling, Validation
from aifx.training.hooks.verification import Verification
from aifx.training.hooks.watchdog import Hang, Watchdog, report_hang
from aifx.training.loop import Loop, LoopResult, StepFn
from aifx.training.meter import Meter, compilations_counted
from aifx.training.prepare import Job, KeptChoices, prepare
from aifx.training.records import RunInfo, TrainResult
from aifx.training.restore import InitialState, begin, begin_from, with_kept_references
from aifx.training.resume_checks import (
    Fork,
    Refit,
    check_configuration,
    check_files,
    check_fork,
    check_new,
    finished,
    saved_config,
    with_whole_version,
)
from aifx.training.state import to_tree

if TYPE_CHECKING:
    from aifx.checkpoint.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


class Assembled(NamedTuple):
    """A loop, and those of its hooks that its caller asks as well."""

    loop: Loop
    validation: Validation
    saving: Saving


def assemble(
    info: RunInfo,
    programs: Programs,
    step_fn: StepFn,
    initial: InitialState,
    checkpoints: Checkpoints,
    dispatcher: EventDispatcher,
    signals: StopSignals,
    *,
    group: Group | None = None,
    watch: Watchdog | None = None,
    own_hooks: Sequence[Hook] = (),
    frozen_digest: str | None = None,
) -> Assembled:
    """The loop of a run that begins at `initial`.

    Args:
        own_hooks: those of the project.
    """
    config, frozen, group = programs.config, initial.frozen, group or Group()
    meter = Meter(info, initial.units, initial.loss)
    guard = Guard(
        config.guards, dispatcher, programs.layout.rows_by_process(config.train.global_batch_size), initial.guards
    )
    stop = StopVote(programs, signals)
    validation = Validation(
        programs, frozen, stop, group, dispatcher, initial.progress, pending=initial.pending_validation
    )
    early_stopping = EarlyStopping(config.train.early_stopping, validation)
    if early_stopping.is_due:  # the process before ended between its last checkpoint and its last word
        stop.stop_early(initial.step)
    saving = Saving(programs, checkpoints, group, dispatcher, meter, guard, stop, validation, frozen_digest)
    has_sample = config.log.sample is not None
    # The loop calls `after_step` of all hooks first, so a step that ends the run or rolls it back is never reported.
    # Then each hook has its turn: `at_pause`, if the run has paused, and `on_record`. `around_step` of an earlier hook
    # encloses that of a later one.
    in_order: list[Hook | None] = [
        guard,  # judges a step before others learn from it
        watch,
        stop,  # the processes agree before anything that takes long, and each hook after it knows how
        StepTiming(group, dispatcher),  # compares the processes while they are where the steps left them
        validation,  # adds to the record, or gives way to a signal and votes again
        early_stopping,
        Sampling(info.run, programs, frozen, signals, dispatcher) if has_sample else None,
        *own_hooks,  # they see what validation found, and may add to it or stop the run before anything is written
        dispatcher,
        *(hook for hook in dispatcher.hooks if hook not in own_hooks),  # metrics.jsonl, the log, trackers, the panel
        # Computes aifx's own step twice, not what other hooks do around it, which may differ each time.
        Verification(group, config.guards.verify_every),
        saving,  # last: what a checkpoint has is in metrics.jsonl, and it is known whether the run stops here
    ]
    called = (hook for hook in in_order if hook is not None and (hook.all_processes or group.is_first))
    loop = Loop(programs, step_fn, frozen, meter, stop, tuple(called), dispatcher.account, group)
    return Assembled(loop, validation, saving)


def train(
    project: Project,
    config: Config,
    run_name: str,
    *,
    fork_from: str | None = None,
    fork_at: StepChoice = "last",
    refit: Refit | None = None,
    hooks: Sequence[Hook] = (),
    stop: StopSignals | None = None,
    profile: bool = False,
    started_at: float | None = None,
    request: Request | None = None,
) -> TrainResult:
    """Train the run `run_name`, from where it is to its end. For a run that has ended, the result is that of its end.

    Args:
        fork_from: begin as a new run, from a checkpoint of the run of this name.
        fork_at: which checkpoint, by its step or as "best" or "last".
        refit: the one that this run is, whose configuration `config` is.
        hooks: called in addition to those of the configuration.
        stop: entered by the caller, who decides what happens to a process that must end at once.
        profile: trace a few steps into the run's `profile` folder.
        started_at: `time.perf_counter()` when a process began whose only work is this run; by default now.
        request: the request for it, which the run keeps, with its outcome once it has ended by itself.

    Raises RunBusy, ConfigError, DataError, CheckpointError, EnvironmentFault. A loss that is not finite is a result.
    """
    account = TimeAccount(started_at)
    run, stop = project.run(run_name), stop or StopSignals()
    origin = project.existing_run(fork_from) if fork_from is not None else None
    stop.before_exit.append(restore_stdout)
    with (
        joined(Limits.of(config.processes), lambda lost: _leave(lost, stop, project, config, run)) as group,
        Watchdog(config.guards, group, lambda hang: _hang(hang, stop, run, group)) as watch,
    ):
        choices = {"run": run_name, "fork_from": fork_from, "fork_at": fork_at, "hooks": steering_hooks(hooks)}
        agree(group, lambda: facts_of_start(config, **choices))
        hooks = shared_hooks(hooks, group)
        with hold_run(run) if group.is_first else nullcontext():
            check_shared(group, run.path, "the run directory", "put the project on a file system that all nodes share")
            if config.mesh.auto:
                from aifx.training.auto_mesh import with_found_mesh  # here, since other runs need no plan

                config = with_found_mesh(config, run, project, group)
            with group.first_then_others():
                config, fork = _check(run, project, config, origin, fork_at, group)
                if request is not None and group.is_first:
                    keep_request(project, run, request)
            if (result := finished(run, config, group)) is not None:
                return _answer(result, run, request, group)
            metrics, own_hooks = MetricsFile(run), open_hooks(config.train.hooks, project, group)

            def train_with(dispatcher: EventDispatcher) -> TrainResult:
                job = Job(project, config, run, fork, dispatcher, stop, metrics, group, watch, own_hooks, refit)
                return _answer(_supervised(job), run, request, group)

            if not group.is_first:
                return train_with(EventDispatcher(None, [*(hook for hook in hooks if hook.all_processes), *own_hooks]))
            log = LogFile(run)
            with log_lines(log.write), compilations_counted(account):
                asked = [*open_trackers(config.log.trackers, run), *open_metrics_server(config.log, run)]
                more = [*([Trace(run)] if profile else []), *asked, *hooks]
                return train_with(EventDispatcher(run, [metrics, log, *more, *own_hooks], account))


def _check(
    run: RunDirectory, project: Project, config: Config, origin: RunDirectory | None, fork_at: StepChoice, group: Group
) -> tuple[Config, Fork | None]:
    """The complete configuration, and where a fork begins."""
    if group.is_first:
        run.check_entries()
        for folder in (run.path, run.assets):
            remove_temporary(folder)
    before = saved_config(run, project)
    best_by = None if before is None or before.checkpoint.best_by == AUTO else before.checkpoint.best_by
    config = with_best_by(config, best_by)
    config = with_whole_version(config, before or (read_config(origin.config, project) if origin else None), project)
    check_best_by(config)
    check_new(run, is_fork=origin is not None)
    fork = check_fork(origin, run, config, project, fork_at) if origin is not None else None
    if before is not None:
        check_files(run, before)
        check_configuration(run, before, config)
    return config, fork


def _answer(result: TrainResult, run: RunDirectory, request: Request | None, group: Group) -> TrainResult:
    """The result with the id of its request, which the run keeps unless it goes on when it is started again."""
    if request is None:
        return result
    result = replace(result, request=request.id)
    if group.is_first and result.status not in STOPPED:
        finish_request(run, request, result.document())
    return result


def _supervised(job: Job) -> TrainResult:
    """Train, and record how that ends."""
    job.stop.before_exit.append(job.dispatcher.ended_abruptly)
    try:
        with project_errors(job.config.parts, job.project):
            result = replace(_train(job), license_conflicts=tuple(job.license_conflicts))
    except BaseException as e:
        if job.group.loss_behind(e) is not None:
            raise  # the thread that watches the other processes records the end
        if is_out_of_memory(e):
            job.group.hold(AifxError(first_line(e)))
        job.dispatcher.end(None, error=f"{type(e).__name__}: {e}", status=_status_after(e, job))
        _add_what_was_saved(e, job.run)
        if (better := _advice(e, job.project, job.config, job.run)) is not None:
            raise better from e
        raise
    job.dispatcher.end(result)
    job.group.finish()  # until then, a process that is lost ends this one, and a signal too
    job.stop.finish()
    return result


def _status_after(error: BaseException, job: Job) -> ProcessStatus | None:
    """The status of a run that can go on after `error`, None if it failed.

    A run that had been stopped keeps its status if its settings or its data kept this process from training.
    """
    if not isinstance(error, AifxError):
        return None
    if error.exit_code == ExitCode.PREEMPTED:
        return "preempted"
    if job.dispatcher.has_started or not isinstance(error, (ConfigError, DataError)):
        return None
    before = ending_before(job.run, os.getpid())
    return before if before in ("interrupted", "preempted") else None


def _leave(lost: PeerLost, stop: StopSignals, project: Project, config: Config, run: RunDirectory) -> None:
    """End this process, since another one is gone; called by the thread that watches the others."""
    better = _advice(lost, project, config, run) if current_group().is_first else None
    stop.hint = (better or lost).hint
    stop.leave(lost.exit_code, f"{lost.what}: {lost.why}")


def _hang(hang: Hang, stop: StopSignals, run: RunDirectory, group: Group) -> None:
    """End this process, since it hangs; called by the thread that watches it."""
    path = report_hang(hang, run, group)
    stop.hint = f"read {path}; it resumes when it is run again" if path else ""
    stop.leave(ExitCode.PREEMPTED, f"{hang}; {stop.kept}")


def _advice(error: BaseException, project: Project, config: Config, run: RunDirectory) -> AifxError | None:
    """If the devices have too little memory, the error that names settings which need less. It may take minutes."""
    if not is_out_of_memory(error):
        return None
    try:
        from aifx.planning.planner import out_of_memory  # here, since training needs no plan otherwise

        return out_of_memory(error, project, config, run, local_layout(config.train.devices))
    except Exception as failure:  # the process must end for `error`, with advice or without
        logger.warning(f"no advice on memory: {type(failure).__name__}: {failure}")
        return None


def _add_what_was_saved(error: BaseException, run: RunDirectory) -> None:
    """Add to the error of a full disk that the run has no checkpoint."""
    if isinstance(error, EnvironmentFault) and refusal_in(error) in FULL and not any(step_directories(run.checkpoints)):
        error.why += "" if "nothing was saved" in error.why else "; nothing was saved"


def _train(job: Job) -> TrainResult:
    """Prepare, restore or initialize, and run the loop to its end, again after each rollback."""
    started = time.perf_counter()
    programs, digests, choices = prepare(job)
    step_fn, initial = _restore(job, programs, choices)
    programs = with_kept_references(programs, initial.frozen, job.run, digests)
    recorded = initial.step - 1 if initial.pending_validation else initial.step
    info = run_info(job.run, programs, first_step=initial.step, recorded_step=recorded)
    loop, validation, saving = _assemble(job, programs, step_fn, initial, info)
    if job.fork is not None:  # its first checkpoint, then its configuration: from then on it is a run of its own
        saving.save(initial.state, initial.step, force=True)
        job.checkpoints.wait()
        if job.group.is_first:
            write_text(job.run.config, job.config.to_toml())
    job.dispatcher.start(info)
    if every := job.config.guards.verify_every:
        size = readable_bytes(sum(programs.state_bytes()[part] for part in ("parameters", "optimizer")))
        logger.info(
            f"guards.verify_every = {every}: one step in {every} is computed twice, {1 / every:.2%} more time and "
            f"{size} more memory over all devices"
        )
    job.stop.guard(job.config.checkpoint.stop_timeout_s)
    resumed_from = initial.step
    while True:
        try:
            ending = _run(loop, initial, job.config)
            break
        except NotFinite as error:
            _wait_for_checkpoints(job)
            return report_divergence(error, info, job.checkpoints.steps(), job.dispatcher, is_first=job.group.is_first)
        except Rollback as error:
            fault = error.with_traceback(None)  # which would keep the state that is given up
        initial = _roll_back(fault, job, programs, initial.frozen)
        loop, validation, saving = _assemble(job, programs, step_fn, initial, info)
        saving.save_again(initial.state, initial.step)
    _wait_for_checkpoints(job)
    return _result(ending, loop, validation.progress, resumed_from, info, time.perf_counter() - started)


def _assemble(job: Job, programs: Programs, step_fn: StepFn, initial: InitialState, info: RunInfo) -> Assembled:
    """The loop of a job, from `initial`, with the thresholds that its refit takes over."""
    if job.refit is not None:
        initial = replace(initial, progress=replace(initial.progress, thresholds=job.refit.thresholds))
    return assemble(
        info,
        programs,
        step_fn,
        initial,
        job.checkpoints,
        job.dispatcher,
        job.stop,
        group=job.group,
        watch=job.watch,
        own_hooks=job.own_hooks,
        frozen_digest=digest_of_frozen(programs, initial.frozen),
    )


def _run(loop: Loop, initial: InitialState, config: Config) -> LoopResult:
    """The loop from `initial` on, over the batches that the guards do not leave out."""
    programs, left_out = loop.programs, initial.guards.left_out
    steps = range(initial.step, config.train.num_steps)
    rows = programs.placement(config.train.global_batch_size).local
    source = training_source(programs.task, config)
    loop.meter.resume_clock()
    batches = prefetch(source, steps, rows, left_out=left_out)
    return loop.run(initial.state, batches, initial.step, initial.pending_validation)


def _roll_back(fault: Rollback, job: Job, programs: Programs, frozen: Params) -> InitialState:
    """The newest checkpoint before the fault that is whole, or else the initial state, with the batches left out.

    Later checkpoints are removed: the next process would resume from them. If this one is killed on the way, the next
    one resumes from a checkpoint that is there, comes to the same fault, and goes back as this one does.
    """
    job.group.mark("going back", "start")
    job.checkpoints.wait()
    job.checkpoints.remove_from(fault.below)
    initial = begin(programs, job.checkpoints, job.run, frozen)
    initial = replace(initial, guards=initial.guards.after_rollback(fault, initial.step))
    batches = list(fault.batches)
    job.dispatcher.event(
        "rollback", from_step=fault.last, to_step=initial.step, reason=fault.reason, batches=batches, step=fault.first
    )
    which = f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"
    job.dispatcher.warn(f"the run went back from step {fault.last} to step {initial.step}, and leaves out {which}")
    return initial


def _wait_for_checkpoints(job: Job) -> None:
    job.group.mark("the last checkpoint", "checkpoint")
    with job.dispatcher.account.spending("checkpoint"):
        job.checkpoints.wait()
    if job.checkpoints.local is not None:
        job.checkpoints.local.remove_all()


def _restore(job: Job, programs: Programs, choices: KeptChoices | None) -> tuple[StepFn, InitialState]:
    """The compiled step, and the state that it starts from, which is made or restored while the step compiles."""
    with ThreadPoolExecutor(1, thread_name_prefix="aifx-begin") as pool:
        if job.fork is not None:
            initial = pool.submit(begin_from, job.fork, programs, job.run)
        else:
            initial = pool.submit(begin, programs, job.checkpoints, job.run)
        job.dispatcher.event("compile")
        started = time.perf_counter()
        with job.dispatcher.account.spending("compilation"):
            job.group.mark("the program")
            lowered = _lower(job, programs)
            if choices is not None:
                choices.keep()
            if initial.done():
                initial.result()  # what is refused would be compiled for nothing
            job.group.mark("compilation", "compilation")
            step_fn: StepFn = lowered.compile()
        job.dispatcher.event("compiled", duration_s=time.perf_counter() - started)
        job.group.mark("the restored state", "start")
        found = initial.result()
    job.group.barrier()  # Gloo waits 30 s for a process that is still compiling
    return step_fn, found


def _lower(job: Job, programs: Programs) -> jax.stages.Lowered:
    """The step, traced with the kernels that process 0 chose, and the same in all processes."""
    kernels = programs.kernels
    assert kernels is not None
    lowered = programs.train_step.lower() if job.group.is_first else None
    validates = job.config.train.validate_every > 0
    share_choices(job.group, kernels, lambda: programs.eval_step.trace() if validates else None)
    step = lowered or programs.train_step.lower()
    agree(job.group, lambda: facts_of_program(step, kernels))
    return step


def _result(
    ending: LoopResult, loop: Loop, progress: Progress, resumed_from: int, info: RunInfo, duration_s: float
) -> TrainResult:
    from aifx.checkpoint.digest import state_digest

    return TrainResult(
        run=info.run,
        status=ending.status,
        step=ending.step,
        num_steps=info.num_steps,
        loss=loop.meter.loss,
        unit=info.unit,
        units_per_s=loop.meter.units_per_s,
        state_digest=state_digest(to_tree(ending.state, stacked=loop.programs.is_stacked)),
        validation_loss=progress.last_loss,
        best_step=progress.best_step,
        best_validation_loss=progress.best_loss,
        best_by=str(best_by_of(info.config)),
        best_value=progress.best_value,
        best_over=progress.best_over,
        duration_s=duration_s,
        resumed_from=resumed_from or None,
        peak_memory_bytes=peak_memory(loop.programs.layout.devices),
    )


def run_info(run: RunDirectory, programs: Programs, *, first_step: int = 0, recorded_step: int = 0) -> RunInfo:
    """The facts about a run that its hooks get when it starts."""
    layout, dtype = programs.layout, programs.dtype_name
    return RunInfo(
        run=run,
        config=programs.config,
        first_step=first_step,
        recorded_step=recorded_step,
        num_steps=programs.config.train.num_steps,
        unit=programs.objective.unit,
        num_parameters=programs.num_parameters,
        flops_per_step=programs.flops_per_step,
        peak=peak_of(layout.device_kind, layout.platform, layout.num_devices, dtype),
        devices=f"{layout.num_devices} x {layout.device_kind}",
        dtype=dtype,
        ceiling=measured_peak(layout.device_kind, layout.platform, layout.num_devices, dtype),
    )
