"""Before the first step: task, data and programs; the run's configuration and provenance on disk."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from aifx.checkpoint.folders import local_folder, newest_local
from aifx.checkpoint.manifest import list_bindings, read_manifest
from aifx.config import Config, compare
from aifx.config.best_by import LOSS, best_by_of, check_metric
from aifx.config.checks import warn_of_warmup
from aifx.config.sections import RESUME_SAFE, ROUNDING, FinetuneSection
from aifx.core.digests import sha256_of
from aifx.core.errors import CheckpointError, ConfigError
from aifx.core.files import check_tree, make_folders, read_file
from aifx.core.json_files import write_json, write_text
from aifx.core.licensing import LicenseConflict
from aifx.core.os_errors import PASSING, in_brief, refusal_in
from aifx.core.project import Project, RunDirectory
from aifx.core.stop_signals import StopSignals
from aifx.data.file_index import ImplicitVersion
from aifx.data.spec import keep_spec, need_spec
from aifx.data.text import TOKENIZER_FILE
from aifx.data.versions.catalog import dataset_record, open_catalog
from aifx.data.versions.licenses import check_licenses
from aifx.evaluation.held_out import metric_names
from aifx.kernels.choice import RunChoices, run_choices
from aifx.kernels.choices_file import write_kernel_choices
from aifx.kernels.verification import verify_kernels
from aifx.kinds import read_config
from aifx.machine.compilation_cache import enable_compilation_cache
from aifx.machine.energy import JobEnergy
from aifx.nn.precision import bfloat16_gain
from aifx.parallel.checks import check_batch
from aifx.parallel.group import Group
from aifx.parallel.layout import Layout, local_layout
from aifx.programs.build import Programs, build
from aifx.registry.versions import ModelDirectory, open_named_base
from aifx.runs.agreement import agree, check_shared, facts_of_data
from aifx.runs.binding import (
    BaseRun,
    RunDigests,
    binding_errors,
    kernel_digest,
    open_digests,
    read_digests,
    weights_digest,
)
from aifx.runs.provenance import differences, provenance, read_provenance
from aifx.serving.generate import unable_to_write
from aifx.tasks.base import Task, data_digest, evaluation_source, training_source
from aifx.tasks.preflight import check_model, declared_metrics
from aifx.tasks.registry import open_task
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.hooks.run_files import MetricsFile
from aifx.training.hooks.watchdog import Watchdog
from aifx.training.resume_checks import Fork, Refit

if TYPE_CHECKING:
    from aifx.checkpoint.checkpoints import Checkpoints
    from aifx.checkpoint.local import LocalCheckpoints
    from aifx.checkpoint.manifest import CheckpointInfo


logger = logging.getLogger(__name__)

NOT_EXACT = "it goes on, and need not equal an uninterrupted run bit for bit"

MUCH_FASTER = 2.0
"""The least speed of bfloat16, as a multiple of float32's, that a run mentions."""


class KeptChoices:
    """Keeps a run's choices of kernels in kernels.json and digests.json, in the process that holds the run.

    Programs make choices while they are traced. They are kept once the training step is traced, and at each save, whose
    manifest names the digest of all choices so far. If the disk refuses the files, they are written before that
    checkpoint counts.
    """

    def __init__(
        self, run: RunDirectory, choices: RunChoices, digests: RunDigests, dispatcher: EventDispatcher
    ) -> None:
        self._run, self._choices, self._digests, self._dispatcher = run, choices, digests, dispatcher
        self._lock = threading.Lock()  # a thread saves while another one traces a program
        self._is_written = True

    def keep(self) -> None:
        """Keep the choices that were made since the last call. Raises errors that do not pass by themselves."""
        with self._lock:
            new = self._choices.collect()
            if not new:
                return
            kinds = self._choices.entries.items()
            self._digests.kernels = {kind: kernel_digest(entries) for kind, entries in kinds}
            self._is_written = False
        for choice in new:
            if choice.before is not None:
                self._dispatcher.event("kernel_replaced", **choice.event())
        try:
            self.write()
        except Exception as error:
            if refusal_in(error) not in PASSING:
                raise
            reason = in_brief(error)
            self._dispatcher.warn(f"{reason}; training goes on, and aifx writes it before the next checkpoint")

    def write(self) -> None:
        """Write the files if the disk has refused them before. Raises what it raises now."""
        with self._lock:
            if not self._is_written:
                write_kernel_choices(self._run, self._choices.entries)
                self._digests.write(self._run)
            self._is_written = True

    def binding(self) -> dict[str, Any]:
        """The entry on the run in the manifest of a checkpoint that is saved now."""
        self.keep()
        return self._digests.binding()


class PreparedRun(NamedTuple):
    """The programs of a run; in process 0 also the run's digests, and its choices of kernels."""

    programs: Programs
    digests: RunDigests | None
    choices: KeptChoices | None


@dataclass(frozen=True)
class Job:
    """One process's part of a run."""

    project: Project
    config: Config
    run: RunDirectory
    fork: Fork | None
    dispatcher: EventDispatcher
    stop: StopSignals
    metrics: MetricsFile
    group: Group = field(default_factory=Group)
    watch: Watchdog | None = None
    own_hooks: Sequence[Hook] = ()
    refit: Refit | None = None
    before_commit: list[Callable[[], None]] = field(default_factory=list)  # write what a checkpoint relies on
    license_conflicts: list[LicenseConflict] = field(default_factory=list)  # of its data set's sources, in process 0

    @cached_property
    def base(self) -> tuple[RunDirectory, BaseRun | None] | None:
        """As `find_base`, once: a registry may be far away."""
        return find_base(self.config, self.project, self.run)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        from aifx.checkpoint.checkpoints import Checkpoints

        def committed(info: CheckpointInfo) -> None:
            self.stop.kept = f"the checkpoint of step {info.step} is kept"
            loss = info.validation_loss
            self.dispatcher.event("checkpoint", step=info.step, validation_loss=loss, size_bytes=info.size_bytes)

        def refused(step: int, fault: BaseException) -> None:
            self.dispatcher.event("checkpoint_refused", step=step, why=in_brief(fault))

        checkpoints = Checkpoints(
            self.run.checkpoints,
            self.config.checkpoint,
            before_commit=self._before_commit,
            on_commit=committed,
            on_refusal=refused,
            warn=self.dispatcher.warn,
        )
        if (latest := checkpoints.latest()) is not None:
            self.stop.kept = f"the checkpoint of step {latest} is kept"
        return checkpoints

    def _before_commit(self) -> None:
        for write in (*self.before_commit, self.metrics.sync):
            write()


def prepare(job: Job) -> PreparedRun:
    """The programs of the run, its data open. Raises ConfigError, DataError."""
    _check_local(job)
    latest = job.group.broadcast(job.fork.step if job.fork else job.checkpoints.latest())
    hosts = job.group.gather(socket.gethostname())
    first = 0 if latest is None else latest if job.fork else max(latest, _newest_local(job))
    job.dispatcher.event("start" if latest is None else "resume", step=first, pid=os.getpid(), hosts=hosts)
    enable_compilation_cache()
    verify_kernels(job.project, job.config, job.run)
    layout = local_layout(job.config.train.devices, job.config.mesh)
    if job.group.is_first:
        warn_of_warmup(job.config.schedule, job.config.train.num_steps)
        job.dispatcher.account.energy = JobEnergy(
            layout.devices, num_hosts=len(set(hosts)), declared_w=job.config.costs.power_w
        )
    check_batch(layout, job.config.train.global_batch_size, job.config.train.gradient_accumulation)
    is_fresh = latest is None or job.fork is not None
    job.group.mark("the data")
    with job.group.first_then_others():
        if job.group.is_first:
            _check_licenses(job)
        task = _open_task(job, is_fresh and job.group.is_first)
        digests = _own_run(job, task, layout, is_fresh) if job.group.is_first else None
        kernels = run_choices(job.run, job.config.kernels)
        choices = None if digests is None else KeptChoices(job.run, kernels, digests, job.dispatcher)
        if choices is not None:
            job.checkpoints.bind(choices.binding)
            job.before_commit.append(choices.write)
    if job.config.checkpoint.local_dir is not None:
        run_id = job.group.broadcast(digests.run_id if digests else None)
        job.checkpoints.local = _local_checkpoints(job, job.config.checkpoint.local_dir, run_id)
    agree(job.group, lambda: facts_of_data(job.project, data_digest(task, job.config), layout.device_kind))
    programs = build(job.config, task, layout, kernels=kernels)
    _check_fields(programs)
    _check_metric(job, programs)
    _check_sample(programs)
    return PreparedRun(programs, digests, choices)


def _own_run(job: Job, task: Task, layout: Layout, is_fresh: bool) -> RunDigests:
    """Write what the run's folder says of the run, in the process that holds it. Returns the run's digests."""
    base = _record_origin(job, task, layout, is_fresh)
    is_new = is_fresh or not list_bindings(job.run.checkpoints)
    needed = base.document() if base and job.config.finetune.adapter != "none" else None
    return open_digests(job.run, job.config, is_fresh=is_new, base=needed)


def _local_checkpoints(job: Job, local_dir: str, run_id: str) -> LocalCheckpoints:
    from aifx.checkpoint.local import LocalCheckpoints

    def committed(info: CheckpointInfo) -> None:
        job.stop.kept = f"the local checkpoint of step {info.step} is kept"
        job.dispatcher.event("local_checkpoint", step=info.step, size_bytes=info.size_bytes)

    folder = local_folder(local_dir, job.run.path, run_id)
    return LocalCheckpoints(
        folder, job.checkpoints, recorded=job.metrics.recorded, on_commit=committed, warn=job.dispatcher.warn
    )


def _newest_local(job: Job) -> int:
    """The step of the run's newest local checkpoint, or 0."""
    if (local_dir := job.config.checkpoint.local_dir) is None or not job.group.is_first:
        return 0
    try:
        return newest_local(local_folder(local_dir, job.run.path, read_digests(job.run).run_id))
    except CheckpointError:  # of digests.json, which a run whose checkpoints are all damaged makes again
        return 0


def _check_local(job: Job) -> None:
    """Raise Disagreement unless all processes see one `checkpoint.local_dir`: each writes its part of a checkpoint."""
    if (local_dir := job.config.checkpoint.local_dir) is not None:
        hint = "remove local_dir from [checkpoint], and save more often with checkpoint.every"
        check_shared(job.group, Path(local_dir), "the checkpoint.local_dir", hint, is_needed=False)


def _check_licenses(job: Job) -> None:
    """Warn of licences of the data set that exclude each other, or refuse them, as the project has it."""
    if (reference := getattr(job.config.data, "dataset", None)) is not None:
        project = job.config.apply_to(job.project)
        catalog = open_catalog(project.datasets, project)
        manifest = catalog.manifest(reference)
        job.license_conflicts.extend(check_licenses([manifest], catalog, project, manifest.reference))


def _open_task(job: Job, is_fresh: bool) -> Task:
    """The task, its data open. `is_fresh` in the process that begins a run.

    A run without a checkpoint begins with nothing of an attempt before it, a fork with its origin's assets.
    """
    run, fork = job.run, job.fork
    if is_fresh and fork is None:
        _ = job.base  # a mistake ends the run before its data is read
    if is_fresh:
        run.kernels.unlink(missing_ok=True)
        if run.assets.exists():
            shutil.rmtree(run.assets)
    make_folders(run.assets, below=run.path)
    check_tree(run.assets)
    if is_fresh and fork is not None and fork.run.assets.is_dir():
        check_tree(fork.run.assets)
        shutil.copytree(fork.run.assets, run.assets, dirs_exist_ok=True)
    if not is_fresh:
        need_spec(run.assets)
    task = open_task(job.config, job.project, run.assets)
    if is_fresh:
        keep_spec(run.assets, task.data)
    if job.config.train.validate_every:
        evaluation_source(task, job.config, "validation")  # a missing split fails now, not at the first validation
    return task


def _record_origin(job: Job, task: Task, layout: Layout, is_fresh: bool) -> BaseRun | None:
    """Write provenance and configuration, or compare them with the run's. Returns the base of a run that begins."""
    base: BaseRun | None = None
    digest = data_digest(task, job.config)
    reference = getattr(job.config.data, "dataset", None)
    dataset = None if reference is None else dataset_record(reference, job.config.apply_to(job.project))
    files: Mapping[str, ImplicitVersion] = getattr(task.dataset, "file_versions", {})  # none of data of its own
    sources = {key: version.record() for key, version in files.items()}
    now = provenance(job.project.root, data_digest=digest, devices=layout.devices, dataset=dataset, sources=sources)
    if job.fork is not None:
        _warn_of_origin(job.fork, job.project, digest)
    if is_fresh:
        _suggest_precision(job.config.train.precision, layout)
        base = base_of_fork(job.fork, job.config.finetune) if job.fork else choose_base(job.base, job.config, job.run)
        forked_from, finetuned_from = job.fork.run.name if job.fork else None, base.document() if base else None
        origins: dict[str, Any] = {"forked_from": forked_from, "finetuned_from": finetuned_from}
        write_json(job.run.provenance, now | origins | ({"refitted_from": job.refit.origin} if job.refit else {}))
    else:
        before = read_provenance(job.run)
        if others := {before.get("data_digest"), _bound_data(job.run)} - {None, digest}:
            name, was = job.run.name, others.pop()
            what = f"the data of run {name!r} has changed since it was started"
            why = f"its digest was {was[:12]}..., and is {digest[:12]}... now"
            raise ConfigError(what, why, f"restore the data, or: aifx train --run {name} --fork NAME")
        _report_changed_settings(job)
        for change in differences(before, now) if before else []:
            if change.name != "data_digest":
                logger.warning(f"since the run began, {change}: {NOT_EXACT}")
    if job.fork is None:  # a fork is a run once its first checkpoint is there
        write_text(job.run.config, job.config.to_toml())
    return base


def _bound_data(run: RunDirectory) -> Any:
    """The digest of the data that the checkpoints of a run name, if it is known."""
    with suppress(CheckpointError):  # of digests.json, which a run whose checkpoints are all damaged makes again
        return (read_digests(run).data or {}).get("digest")
    return None


def _warn_of_origin(fork: Fork, project: Project, digest: str) -> None:
    """Log which files of a fork's origin changed since the checkpoint, and whether the fork reads other data."""
    bound = list_bindings(fork.run.checkpoints).get(fork.step)
    if bound is not None:
        for error in binding_errors(fork.run, read_config(fork.run.config, project), fork.step, bound):
            logger.warning(f"{error.what} ({error.why}); the fork uses it unchanged")
    if read_provenance(fork.run).get("data_digest") not in (None, digest):
        logger.warning(
            f"its data, or how it is split, is not what run {fork.run.name} was trained on: "
            "what is held out now may be what it learnt from"
        )


def _suggest_precision(precision: str, layout: Layout) -> None:
    if precision != "auto" or layout.platform != "cpu":
        return
    if (gain := bfloat16_gain()) > MUCH_FASTER:
        logger.info(
            f"this run trains in float32; this processor multiplies bfloat16 {gain:.1f} times as fast: "
            'set train.precision = "bfloat16" to use that'
        )


def _report_changed_settings(job: Job) -> None:
    before = read_config(job.run.config, job.project)
    changes = compare(before, job.config, RESUME_SAFE)
    if not changes:
        return
    rounding = [str(c) for c in compare(before, job.config, ROUNDING)]
    job.dispatcher.event("settings_changed", changes=changes)
    if others := [str(c) for c in changes if str(c) not in rounding]:
        logger.info(f"settings changed since the run was last trained: {', '.join(others)}")
    if rounding:
        logger.info(f"{', '.join(sorted(rounding))}: from here on the losses may differ in their last bits")


def _check_fields(programs: Programs) -> None:
    """Raise ConfigError unless the first batch has the fields that the programs are made for."""
    rows = programs.config.train.global_batch_size
    local = programs.layout.local_rows(rows)
    batch, count = training_source(programs.task, programs.config).read(0, local), local.stop - local.start
    structs = programs.batch(rows).items()
    wanted = {name: f"{struct.dtype.name} {[count, *struct.shape[1:]]}" for name, struct in structs}
    found = {name: f"{values.dtype.name} {list(values.shape)}" for name, values in batch.items()}
    for name in sorted({*wanted, *found}):
        has, comes = (fields.get(name, "no such field") for fields in (wanted, found))
        if has != comes:
            what = f"the training batches do not fit the data's DataSpec in {name!r}"
            why = f"the DataSpec has {has}, the first batch {comes}"
            raise ConfigError(what, why, "make DataSpec.fields name each array of a batch: docs/tasks.md")


def _check_metric(job: Job, programs: Programs) -> None:
    """Raise ConfigError if the objective does not report the metric that ranks checkpoints.

    `check_best_by` knows the metrics of most tasks without tracing a program.
    """
    best_by = best_by_of(job.config)
    if (
        best_by == LOSS
        or not job.config.train.validate_every
        or best_by.metric in declared_metrics(job.config.parts, job.config.data)
    ):
        return
    check_metric(best_by, metric_names(programs, "validation"))


def _check_sample(programs: Programs) -> None:
    """Raise ConfigError if `log.sample` is set and the model does not write text."""
    if programs.config.log.sample is not None and (why := unable_to_write(programs)) is not None:
        raise ConfigError("log.sample is set, and this model cannot write text", why, "remove sample from [log]")
    if programs.config.log.sample is not None and jax.process_count() > 1:
        why = "one process writes the text, and it does not hold what the others have of the model"
        raise ConfigError("log.sample is set, and the run has several processes", why, "remove sample from [log]")


def find_base(config: Config, project: Project, run: RunDirectory | None) -> tuple[RunDirectory, BaseRun | None] | None:
    """The run that `[finetune]` names, or the version and its weights; None if it names neither.

    Args:
        run: the one that begins with it, if there is one.

    Reads the configuration of a run alone. Raises UsageError, and ConfigError for another `[model]` than its own.
    """
    name, version = config.finetune.base_run, config.finetune.base_version
    if run is not None and name == run.name:
        why = "a run cannot begin with its own weights"
        raise ConfigError(f"finetune.base = {name!r} is this run", why, "aifx train --run ANOTHER-NAME")
    if version is not None:
        found: tuple[RunDirectory, BaseRun | None] = open_named_base(version, config.apply_to(project))
    elif name is not None:
        found = project.base_run(name), None
    else:
        return None
    check_model(config, found[0], project)
    return found


def choose_base(found: tuple[RunDirectory, BaseRun | None] | None, config: Config, run: RunDirectory) -> BaseRun | None:
    """The checkpoint of what `find_base` found, or None. Raises UsageError, CheckpointError, ConfigError."""
    from aifx.loading.steps import choose_step

    if found is None:
        return None
    base, weights = found
    if isinstance(base, ModelDirectory):
        tokenizer = base.artifact.files.get(f"assets/{TOKENIZER_FILE}")
        _check_tokenizer(run, base, None if tokenizer is None else tokenizer.sha256)
        return weights
    step = choose_step(base, config, config.finetune.base_step)
    manifest = read_manifest(base.checkpoints / str(step))
    _check_tokenizer(run, base, manifest.run.get("assets", {}).get(TOKENIZER_FILE))
    return BaseRun(base.name, step, weights_digest(manifest))


def base_of_fork(fork: Fork, finetune: FinetuneSection) -> BaseRun | None:
    """The base of a fork, which is that of its origin. Raises ConfigError for another, if it is still needed."""
    named = read_provenance(fork.run).get("finetuned_from")
    if not named:
        return None
    changed = [d for d in fork.changes if d.key == "finetune.base"]
    if changed and finetune.adapter != "none":
        what = f"a fork of run {fork.run.name!r} cannot have another base run"
        why = "\n".join([*map(str, changed), "its adapters were trained beside the weights of that one"])
        raise ConfigError(what, why, "aifx train --run NAME    (a new run, from its first step)")
    return BaseRun(**named)


def _check_tokenizer(run: RunDirectory, base: RunDirectory, theirs: str | None) -> None:
    """Raise ConfigError if the token tables of the two runs number different tokens. `theirs`: SHA-256."""
    ours = run.assets / TOKENIZER_FILE
    if theirs is None or not ours.exists():
        return
    if sha256_of(read_file(ours, below=run.path)) != theirs:
        file = f"runs/{base.name}/assets/{TOKENIZER_FILE}"
        if base.model_digest is not None:
            file = str(base.assets / TOKENIZER_FILE)
        raise ConfigError(
            f"the tokenizer is not that of {base.title}, which finetune.base names",
            "its weights know other tokens",
            f'tokenizer = "{file}"    (below [data])',
        )
