"""From a project and a configuration to a trained run: what comes before the loop, and what comes after it."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aifx.checkpoint.listing import list_bindings
from aifx.checkpoint.manifest import step_directories
from aifx.config import Config
from aifx.config.best_by import LOSS, best_by_of, check_metric, with_best_by
from aifx.core.errors import EnvironmentFault
from aifx.core.files import check_tree, make_folders, remove_temporary
from aifx.core.json_files import write_json, write_text
from aifx.core.logs import log_lines
from aifx.core.os_errors import FULL, refusal_in
from aifx.core.project import Project, RunDirectory
from aifx.kernels.choice import run_choices
from aifx.kernels.verification import verify_kernels
from aifx.machine.compilation_cache import enable_compilation_cache
from aifx.runs import RunLock, provenance
from aifx.runs.binding import RunDigests, kernel_digest, open_digests
from aifx.tasks.preflight import check_best_by, declared_metrics
from aifx.training.events import EventDispatcher
from aifx.training.observers import LogFile, MetricsFile, Trace
from aifx.training.records import Observer, RunInfo, TrainResult
from aifx.training.resume_checks import (
    Fork,
    check_configuration,
    check_data,
    check_files,
    check_fork,
    check_new,
    environment_changes,
    finished,
    forks_other_data,
    free_changes,
    origin_errors,
    rounding_changes,
    started_best_by,
)
from aifx.training.signals import StopSignals
from aifx.training.trackers import open_trackers
from jax_kernels.dispatch import Choices, using

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from aifx.checkpoint import CheckpointInfo, Checkpoints
    from aifx.tasks.trained import Which
    from aifx.training.loop import Loop, LoopResult
    from aifx.training.restore import InitialState
    from aifx.training.step import StepFn, StepSpec

logger = logging.getLogger(__name__)

MUCH_FASTER = 2.0
"""How many times as fast as float32 bfloat16 must be for a run to mention it."""


def train(
    project: Project,
    config: Config,
    run_name: str,
    *,
    fork_from: str | None = None,
    fork_at: int | Which = "last",
    observers: Sequence[Observer] = (),
    stop: StopSignals | None = None,
    profile: bool = False,
) -> TrainResult:
    """Train the run `run_name`, from where it stands to its end; a run that has ended is told as it stands.

    Args:
        fork_from: begin as a new run, from a checkpoint of the run of this name.
        fork_at: which checkpoint, by its step or as "best" or "last".
        stop: entered by the caller, who hears what happens to a process that must end at once.
        profile: trace a few steps into the run's `profile` folder.

    Raises RunBusy, ConfigError, DataError, CheckpointError, EnvironmentFault. A loss that is not finite is a result.
    """
    run = project.run(run_name)
    origin = project.existing_run(fork_from) if fork_from is not None else None
    with RunLock(run):
        run.check_entries()
        for folder in (run.path, run.assets):
            remove_temporary(folder)
        config = with_best_by(config, started_best_by(run, project))
        check_best_by(config, project)
        check_new(run, is_fork=origin is not None)
        fork = check_fork(origin, run, config, project, fork_at) if origin is not None else None
        if run.exists():
            check_files(run, project)
            check_configuration(run, config, project)
            if (result := finished(run, config)) is not None:
                return result
        metrics, log = MetricsFile(run), LogFile(run)
        with log_lines(log.write):
            traces = [Trace(run)] if profile else []
            trackers = open_trackers(config.log.trackers, run)
            dispatcher = EventDispatcher(run, [metrics, log, *traces, *trackers, *observers])
            job = Training(project, config, run, fork, dispatcher, stop or StopSignals(), metrics)
            job.stop.before_exit.append(dispatcher.ended_abruptly)
            try:
                result = job.train()
            except BaseException as e:
                dispatcher.end(None, error=f"{type(e).__name__}: {e}")
                _add_what_was_saved(e, run)
                raise
            dispatcher.end(result)
            job.stop.finish()
            return result


def _add_what_was_saved(error: BaseException, run: RunDirectory) -> None:
    """Add to the error of a full disk that the run has no checkpoint."""
    if isinstance(error, EnvironmentFault) and refusal_in(error) in FULL and not any(step_directories(run.checkpoints)):
        error.why += "" if "nothing was saved" in error.why else "; nothing was saved"


@dataclass(frozen=True)
class Training:
    """One process's part of a run."""

    project: Project
    config: Config
    run: RunDirectory
    fork: Fork | None
    dispatcher: EventDispatcher
    stop: StopSignals
    metrics: MetricsFile

    def train(self) -> TrainResult:
        """Everything between taking hold of the run and its last word."""
        started = time.perf_counter()
        checkpoints = self._open_checkpoints()
        latest = self.fork.step if self.fork else checkpoints.latest()
        self.dispatcher.event("start" if latest is None else "resume", step=latest or 0)
        enable_compilation_cache()
        is_fresh = latest is None or self.fork is not None
        verify_kernels(self.project, self.config, self.run)
        step_spec = self._prepare(is_fresh=is_fresh)
        digests = open_digests(self.run, self.config, is_fresh=is_fresh or not list_bindings(self.run.checkpoints))
        checkpoints.bind(digests.binding)
        with using(self._kernel_choices(step_spec, digests)):
            return self._run(step_spec, checkpoints, started)

    def _run(self, step_spec: StepSpec, checkpoints: Checkpoints, started: float) -> TrainResult:
        """Compile, begin, loop. `started`: when this process's part began, by `time.perf_counter`."""
        self._check_metric(step_spec)
        step_fn, begun = self._compile_and_begin(step_spec, checkpoints)
        if self.fork is not None:
            self._adopt(step_spec, begun, checkpoints)

        from aifx.data.order import prefetch
        from aifx.training.divergence import report_divergence
        from aifx.training.loop import Loop
        from aifx.training.meter import Meter, NotFinite
        from aifx.training.validation import Validator

        recorded = begun.step - 1 if begun.pending_validation else begun.step
        info = run_info(self.run, self.config, step_spec, first_step=begun.step, recorded_step=recorded)
        meter = Meter(info, begun.units, begun.loss)
        loop = Loop(
            config=self.config,
            step_spec=step_spec,
            step_fn=step_fn,
            meter=meter,
            checkpoints=checkpoints,
            validator=Validator(
                step_spec, self.config.train.validation_batches, lambda: self.stop.requested is not None
            ),
            dispatcher=self.dispatcher,
            stop=self.stop,
            progress=begun.progress,
            pending_validation=begun.pending_validation,
        )
        self.dispatcher.start(info)
        self.stop.guard(self.config.checkpoint.stop_timeout_s)
        meter.resume_clock()
        batches = prefetch(step_spec.task.source("train"), range(begun.step, info.num_steps), _rows(self.config))
        try:
            ending = loop.run(begun.state, batches, begun.step)
        except NotFinite as e:
            checkpoints.wait()
            return report_divergence(e, info, checkpoints.steps(), self.dispatcher)
        checkpoints.wait()
        return self._result(ending, loop, begun, time.perf_counter() - started)

    def _check_metric(self, step_spec: StepSpec) -> None:
        """Raise ConfigError if the task does not report the metric that ranks checkpoints.

        `check_best_by` knows the metrics of most tasks without tracing a program.
        """
        best_by = best_by_of(self.config)
        if best_by == LOSS or not self.config.train.validate_every or declared_metrics(self.config, self.project):
            return
        from aifx.evaluation.held_out import metric_names
        from aifx.specs import map_specs

        params = map_specs(lambda spec: spec.struct, step_spec.specs)
        check_metric(best_by, metric_names(step_spec.task, params, "validation"))

    def _open_checkpoints(self) -> Checkpoints:
        from aifx.checkpoint import Checkpoints

        def committed(info: CheckpointInfo) -> None:
            self.stop.kept = f"the checkpoint of step {info.step} is kept"
            loss = info.validation_loss
            self.dispatcher.event("checkpoint", step=info.step, validation_loss=loss, size_bytes=info.size_bytes)

        def warn(text: str) -> None:
            logger.warning(text)
            self.dispatcher.event("warning", text=text)

        checkpoints = Checkpoints(
            self.run.checkpoints,
            self.config.checkpoint,
            before_commit=self.metrics.sync,
            on_commit=committed,
            warn=warn,
        )
        if (latest := checkpoints.latest()) is not None:
            self.stop.kept = f"the checkpoint of step {latest} is kept"
        return checkpoints

    def _prepare(self, *, is_fresh: bool) -> StepSpec:
        """Task, data and mesh; the run's configuration and provenance on disk. Raises ConfigError, DataError."""
        from aifx.parallel import check_batch_fits, make_mesh
        from aifx.tasks.registry import create_task
        from aifx.training.step import make_step_spec

        mesh = make_mesh(self.config.train.devices)
        check_batch_fits(self.config.train.global_batch_size, self.config.train.gradient_accumulation, mesh)
        self._prepare_assets(is_fresh)
        task = create_task(self.config, self.project, self.run.assets)
        if self.config.train.validate_every:
            task.source("validation")  # a split that is missing is told now, not at the first validation
        step_spec = make_step_spec(self.config, task, mesh)
        now = provenance(self.project.root, data_digest=task.data_digest(), devices=list(mesh.devices.flat))
        if self.fork is not None:
            for error in origin_errors(self.fork, self.project):
                logger.warning(f"{error.what} ({error.why}); the fork goes on with it as it is")
        if self.fork is not None and forks_other_data(self.fork.run, task.data_digest()):
            logger.warning(
                f"its data, or how that is divided, is not what run {self.fork.run.name} was trained on: "
                "what is held out now may be what it learnt from"
            )
        if is_fresh:
            self._suggest_precision(mesh)
            write_json(self.run.provenance, {**now, "forked_from": self.fork.run.name if self.fork else None})
        else:
            check_data(self.run, task.data_digest())
            self._report_changed_settings()
            for change in environment_changes(self.run, now):
                logger.warning(
                    f"since the run began, {change}: it goes on, and need not equal an uninterrupted run bit for bit"
                )
        if self.fork is None:  # a fork is a run once its first checkpoint is there
            write_text(self.run.config, self.config.to_toml())
        return step_spec

    def _suggest_precision(self, mesh: Mesh) -> None:
        from aifx.nn.precision import bfloat16_gain

        if self.config.train.precision != "auto" or mesh.devices.flat[0].platform != "cpu":
            return
        if (gain := bfloat16_gain()) > MUCH_FASTER:
            logger.info(
                f"this run trains in float32; this processor multiplies bfloat16 {gain:.1f} times as fast: "
                'set train.precision = "bfloat16" to use that'
            )

    def _report_changed_settings(self) -> None:
        changes = free_changes(self.run, self.config, self.project)
        rounding = set(rounding_changes(self.run, self.config, self.project))
        if not changes:
            return
        documents = [{"key": c.key, "old": c.old, "new": c.new} for c in changes]
        self.dispatcher.event("settings_changed", changes=documents)
        if others := [str(c) for c in changes if str(c) not in rounding]:
            logger.info(f"settings changed since the run was last trained: {', '.join(others)}")
        if rounding:
            logger.info(f"{', '.join(sorted(rounding))}: from here on the losses may differ in their last bits")

    def _kernel_choices(self, step_spec: StepSpec, digests: RunDigests) -> Choices:
        def kept(choices: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
            digests.kernels = {kind: kernel_digest(entries) for kind, entries in choices.items()}
            digests.write(self.run)

        def replaced(fields: Mapping[str, Any]) -> None:
            self.dispatcher.event("kernel_replaced", **fields)

        return run_choices(self.run, self.config, mesh=step_spec.mesh, on_write=kept, on_replacement=replaced)

    def _prepare_assets(self, is_fresh: bool) -> None:
        """A run without a checkpoint begins with nothing of an attempt before it; a fork with its origin's assets."""
        if is_fresh:
            self.run.kernels.unlink(missing_ok=True)
        if is_fresh and self.run.assets.exists():
            shutil.rmtree(self.run.assets)
        make_folders(self.run.assets, below=self.run.path)
        check_tree(self.run.assets)
        if self.fork is not None and self.fork.run.assets.is_dir():
            check_tree(self.fork.run.assets)
            shutil.copytree(self.fork.run.assets, self.run.assets, dirs_exist_ok=True)

    def _compile_and_begin(self, step_spec: StepSpec, checkpoints: Checkpoints) -> tuple[StepFn, InitialState]:
        """The compiled step and the state that it starts from, which is made or restored while the step compiles."""
        from aifx.training.restore import begin, begin_from
        from aifx.training.state import abstract_state
        from aifx.training.step import lower_step

        abstract = abstract_state(step_spec.specs, step_spec.optimizer, step_spec.mesh)
        with ThreadPoolExecutor(1, thread_name_prefix="aifx-begin") as pool:
            if self.fork is not None:
                begun = pool.submit(begin_from, self.fork, step_spec, abstract, self.config)
            else:
                begun = pool.submit(begin, step_spec, abstract, checkpoints, self.config)
            batch = step_spec.task.source("train").read(0, _rows(self.config))
            self.dispatcher.event("compile")
            started = time.perf_counter()
            lowered = lower_step(step_spec, abstract, batch)
            if begun.done():
                begun.result()  # what is refused would be compiled for nothing
            step_fn: StepFn = lowered.compile()
            self.dispatcher.event("compiled", duration_s=time.perf_counter() - started)
            return step_fn, begun.result()

    def _adopt(self, step_spec: StepSpec, begun: InitialState, checkpoints: Checkpoints) -> None:
        """A fork's first checkpoint, then its configuration: from then on it is a run of its own."""
        from aifx.training.state import to_tree

        host = {
            "units": begun.units,
            "loss": begun.loss,
            "progress": begun.progress.document(),
            "pending_validation": None,
        }
        checkpoints.save(begun.step, to_tree(begun.state, stacked=step_spec.is_stacked), host=host, force=True)
        checkpoints.wait()
        write_text(self.run.config, self.config.to_toml())

    def _result(self, ending: LoopResult, loop: Loop, begun: InitialState, duration_s: float) -> TrainResult:
        from aifx.checkpoint import state_digest
        from aifx.training.state import to_tree

        return TrainResult(
            run=self.run,
            status=ending.status,
            step=ending.step,
            num_steps=self.config.train.num_steps,
            loss=loop.meter.loss,
            unit=loop.step_spec.task.unit,
            units_per_s=loop.meter.units_per_s,
            state_digest=state_digest(to_tree(ending.state, stacked=loop.step_spec.is_stacked)),
            validation_loss=loop.progress.last_loss,
            best_step=loop.progress.best_step,
            best_validation_loss=loop.progress.best_loss,
            best_by=str(best_by_of(self.config)),
            best_value=loop.progress.best_value,
            duration_s=duration_s,
            resumed_from=begun.step or None,
        )


def run_info(
    run: RunDirectory, config: Config, step_spec: StepSpec, *, first_step: int = 0, recorded_step: int = 0
) -> RunInfo:
    """What observers are given when a run starts."""
    from aifx.machine.catalogue import peak_of
    from aifx.machine.measured_peaks import measured_peak
    from aifx.specs import count_parameters

    devices = list(step_spec.mesh.devices.flat)
    kind, platform = devices[0].device_kind, devices[0].platform
    dtype = str(step_spec.dtype_name)
    return RunInfo(
        run=run,
        config=config,
        first_step=first_step,
        recorded_step=recorded_step,
        num_steps=config.train.num_steps,
        unit=step_spec.task.unit,
        num_parameters=count_parameters(step_spec.specs),
        flops_per_step=step_spec.task.model.flops(step_spec.task.batch_shape()),
        peak=peak_of(kind, platform, len(devices), dtype),
        devices=f"{len(devices)} x {kind}",
        dtype=dtype,
        ceiling=measured_peak(kind, platform, len(devices), dtype),
    )


def _rows(config: Config) -> slice:
    return slice(0, config.train.global_batch_size)
