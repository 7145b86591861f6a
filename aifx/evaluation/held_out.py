"""Measuring a model on held-out data: sums on the device, totals in float64 on the host, gates at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jax.typing import DTypeLike

from aifx.config.gates import Gate, GateResult, check_names, evaluate_gates, parse_gate, scalars
from aifx.config.sections import Quantization
from aifx.core.errors import DataError, UsageError
from aifx.core.files import make_folders, read_file, remove_temporary
from aifx.core.parsing import parse_json
from aifx.core.progress import report_progress
from aifx.core.project import Project, RunDirectory
from aifx.data.base import Batch, BatchSource, Split
from aifx.evaluation.better_last import BetterLast, better_last
from aifx.kernels.choice import run_choices
from aifx.nn.precision import cast_floating, compute_dtype
from aifx.nn.quantized import quantize_matrices
from aifx.specs import Params
from aifx.tasks.base import Sums, Task, Totals
from jax_kernels.dispatch import using

if TYPE_CHECKING:
    from aifx.tasks.trained import RestoredRun, Which

logger = logging.getLogger(__name__)

Place: TypeAlias = Callable[[Batch], Mapping[str, jax.Array]]
"""Puts a batch on the devices (sharded over a mesh)."""

Compiled: TypeAlias = Callable[[Params, Mapping[str, Any]], Sums]

SAFE_OVERRIDES = ("data.eval_stride", "data.seq_len", "data.packing")
"""How a split is read; nothing moves from one split to another by these."""


def compile_sums(task: Task, dtype: DTypeLike | None = None) -> Compiled:
    """The jitted evaluation step: (params, batch) -> sums. Keep it to evaluate again without compiling again.

    Args:
        dtype: floating-point parameters are cast to it first, as in training; None leaves them.
    """

    def sums(params: Params, batch: Mapping[str, jax.Array]) -> Sums:
        if dtype is not None:
            params = cast_floating(params, dtype)
        return task.objective(params, batch, jax.random.key(0), training=False)

    return jax.jit(sums)


def evaluate_split(
    task: Task,
    params: Params,
    split: Split,
    *,
    num_batches: int | None = None,
    compiled: Compiled | None = None,
    place: Place | None = None,
) -> dict[str, Any]:
    """Metrics over a split, or over its first `num_batches` batches; the same bits each time on the same machine.

    Args:
        compiled: from `compile_sums`, to share one compilation among calls.
        place: puts a batch on the devices; the default device when None.

    Raises DataError where the split has no batch.
    """
    return task.metrics(sum_split(task, params, split, num_batches=num_batches, compiled=compiled, place=place))


def sum_split(
    task: Task,
    params: Params,
    split: Split,
    *,
    num_batches: int | None = None,
    compiled: Compiled | None = None,
    place: Place | None = None,
) -> Totals:
    """The totals behind `evaluate_split`: each batch's float32 sums added up in float64 in order."""
    compiled = compiled or compile_sums(task)
    totals: dict[str, tuple[Any, Any]] = {}
    pending: Sums | None = None
    for batch in _batches(task.evaluation_source(split), split, num_batches):
        following = compiled(params, place(batch) if place else batch)  # runs while the one before is added up
        if pending is not None:
            _add(totals, pending)
        pending = following
    if pending is not None:
        _add(totals, pending)
    return totals


def _batches(source: BatchSource, split: Split, num_batches: int | None) -> Iterator[Batch]:
    there = source.num_batches
    count = num_batches if there is None else there if num_batches is None else min(there, num_batches)
    if count is None:
        why = "the task's source of it goes on without end (num_batches is None)"
        hint = "aifx eval --split test    (a task's evaluation_source has each example once: docs/tasks.md)"
        raise DataError(f"the {split} split cannot be measured", why, hint)
    if not count:
        raise DataError(f"the {split} split has no batch", "its share of the data is empty", "aifx config show data")
    rows = source.batch_size
    with report_progress(f"evaluating the {split} split", count, "batches") as progress:
        for step in range(count):
            yield source.read(step, slice(0, rows))
            progress.advance(1)


def _add(totals: dict[str, tuple[Any, Any]], sums: Sums) -> None:
    for name, (total, weight) in jax.device_get(sums).items():
        before = totals.get(name, (0.0, 0.0))
        totals[name] = (before[0] + np.asarray(total, np.float64), before[1] + np.asarray(weight, np.float64))


def metric_names(task: Task, params: Params, split: Split) -> set[str]:
    """What `metrics` of this task will hold, known before anything is computed: the shapes of the sums are traced."""
    shapes = jax.eval_shape(compile_sums(task), params, next(_batches(task.evaluation_source(split), split, 1)))
    ones = {name: (np.ones(total.shape), np.ones(weight.shape)) for name, (total, weight) in shapes.items()}
    return set(scalars(task.metrics(ones)))


@dataclass(frozen=True)
class Report:
    """What a checkpoint reached, and whether that is enough: what `aifx eval --json` prints."""

    run: str
    step: int
    split: Split
    quantize: Quantization
    metrics: Mapping[str, Any]
    gates: tuple[GateResult, ...]
    better_last: BetterLast | None = None  # the last checkpoint, if it beats the best one by a gate's metric

    @property
    def passed(self) -> bool:
        return all(g.passed for g in self.gates)


def evaluate(
    run: RunDirectory,
    project: Project,
    *,
    split: Split | None = None,
    gates: Sequence[str] = (),
    step: int | None = None,
    which: Which | None = None,
    overrides: Sequence[str] = (),
) -> Report:
    """Measure a run's checkpoint on a split and hold it against gates; the report lands in the run as eval/<step>.json.

    Args:
        split: None takes `eval.split`.
        gates: besides those of `eval.gates`.
        step, which: the checkpoint, as `restore_run` takes them.
        overrides: `--set` strings over the run's configuration.

    Raises UsageError for a malformed gate, one on a metric that does not exist, or overrides that divide the data
    otherwise than the run did, before anything is measured.
    """
    from aifx.tasks.trained import restore_run

    asked = [parse_gate(expr) for expr in gates]
    check_overrides(run, project, overrides)
    try:
        trained = restore_run(run, project, step=step, which=which, overrides=overrides)
        _compare_data(trained, project)
    except DataError as error:
        opened = restore_run(run, project, step=step, which=which, overrides=overrides, with_data=False)
        trained = _with_split_alone(opened, project, split, error)
    chosen: Split = split or trained.config.eval.split
    all_gates = [*(parse_gate(expr) for expr in trained.config.eval.gates), *asked]
    if all_gates:
        check_names(all_gates, metric_names(trained.task, trained.params, chosen))
    better = better_last(run, all_gates)
    report = replace(
        _measure(trained, chosen, all_gates),
        better_last=better if better is not None and better.last_step != trained.step else None,
    )
    write_report(run.eval / f"{trained.step}.json", report, data_digest=trained.task.data_digest())
    return report


def check_overrides(
    run: RunDirectory, project: Project, overrides: Sequence[str], safe: Sequence[str] = SAFE_OVERRIDES
) -> None:
    """Raises UsageError where overrides could put into the chosen split what the run was trained on."""
    if not overrides:
        return
    from aifx.config import compare, read_config

    changed = compare(read_config(run.config, project), read_config(run.config, project, overrides))
    for d in changed:
        if d.key.startswith(("task.", "data.")) and d.key not in safe:
            raise UsageError(
                f"{d.key} is not to be changed for an evaluation",
                f"run {run.name} was trained with {d.old!r}: with {d.new!r} it may be measured on what it learnt from",
                f"aifx eval --run {run.name}    (--set takes eval.*, {', '.join(safe)} and the like)",
            )


def _with_split_alone(trained: RestoredRun, project: Project, split: Split | None, error: DataError) -> RestoredRun:
    """The task with the files of the split alone. Raises `error`, about the training data, if the split has none."""
    chosen: Split = split or trained.config.eval.split
    task = trained.task.with_split(chosen, project)
    if task is None:
        raise error
    logger.warning(f"{error.what}: aifx measures the files of data.{chosen} without knowing what was trained on")
    return replace(trained, task=task)


def _compare_data(trained: RestoredRun, project: Project) -> None:
    """Warn when the data is not what the run was trained on: text that is held out now may have been learnt."""
    from aifx.config import read_config
    from aifx.runs import read_provenance
    from aifx.tasks.registry import create_task

    run = trained.run
    before = read_provenance(run).get("data_digest")
    if before is None or before == trained.task.data_digest():
        return
    # The digest covers how the data is read as well, which overrides may change: look again without them.
    if before != create_task(read_config(run.config, project), project, run.assets).data_digest():
        logger.warning(
            f"the data has changed since run {run.name} began: what is held out now may be what it learnt from"
        )


def _measure(trained: RestoredRun, split: Split, gates: Sequence[Gate]) -> Report:
    quantization = trained.config.eval.quantize
    with using(run_choices(trained.run, trained.config, keep=False)):
        params, cast = computation_params(trained)
        metrics = evaluate_split(trained.task, params, split, compiled=compile_sums(trained.task, cast))
    return Report(trained.run.name, trained.step, split, quantization, metrics, evaluate_gates(gates, metrics))


def computation_params(trained: RestoredRun) -> tuple[Params, DTypeLike | None]:
    """The parameters that evaluation and prediction compute with, and the dtype that they are still to be cast to.

    Raises UsageError where `eval.quantize` does not suit the task.
    """
    from aifx.models.decoder.model import Decoder

    quantization = trained.config.eval.quantize
    dtype = compute_dtype(trained.config.train.precision, jax.default_backend())
    if quantization == "none":
        return trained.params, dtype
    if not isinstance(trained.task.model, Decoder):
        why = f"it is for language models, and the task of run {trained.run.name} is {trained.config.task.kind}"
        hint = f"aifx eval --run {trained.run.name} --set eval.quantize=none"
        raise UsageError(f"eval.quantize = {quantization}", why, hint)
    return quantize_matrices(cast_floating(trained.params, dtype), trained.task.model.specs(), quantization), None


def write_report(path: Path, report: Report, *, data_digest: str) -> None:
    """Put a report among those of its step, atomically; docs/run-directory.md has the format."""
    measured = {"metrics": report.metrics, "gates": report.gates, "passed": report.passed, "data_digest": data_digest}
    name = report.split if report.quantize == "none" else f"{report.split}-{report.quantize}"
    with reports_of_step(path, report.run, report.step) as kept:
        kept["splits"][name] = measured | {"measured_at": time.time()}


@contextmanager
def reports_of_step(path: Path, run: str, step: int) -> Iterator[dict[str, Any]]:
    """The reports of a step, to be changed: written back in one piece, while other evaluations wait."""
    from aifx.core.json_files import write_json
    from aifx.runs import exclusive

    make_folders(path.parent, below=path.parent.parent)
    with exclusive(path.parent / ".lock"):  # another evaluation of the step may end at the same time
        remove_temporary(path.parent)
        kept: dict[str, Any] = {"schema_version": 1, "run": run, "step": step, "splits": {}, "datasets": []}
        # None yet, or not one of ours: this one is whole by itself.
        with suppress(OSError, ValueError, TypeError, AttributeError):
            found = parse_json(read_file(path))
            kept |= {"splits": dict(found.get("splits", {})), "datasets": list(found.get("datasets", []))}
        yield kept
        write_json(path, kept)
