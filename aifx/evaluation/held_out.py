"""Measuring a model on held-out data: sums on the device, totals in float64 on the host, gates at the end."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from aifx.checkpoint.manifest import list_checkpoints
from aifx.config import Config
from aifx.config.best_by import first_of
from aifx.config.gates import Gate, GateResult, check_names, evaluate_gates, parse_gate, scalars
from aifx.config.project_errors import project_errors
from aifx.config.sections import DataSection, Quantization
from aifx.core.digests import sha256_of_json
from aifx.core.errors import DataError, ExitCode
from aifx.core.files import exclusive, make_folders, read_file, remove_temporary
from aifx.core.json_files import read_jsonl, write_json
from aifx.core.parsing import parse_json
from aifx.core.progress import report_progress
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.core.steps import StepChoice
from aifx.data.base import TEXT_BYTES, Batch, BatchSource, Dataset
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import Split
from aifx.data.versions.catalog import whole_reference
from aifx.evaluation.settings import check_overrides, measuring_settings
from aifx.evaluation.slices import Slices, check_slice_gates, measure_slices
from aifx.kinds import read_config
from aifx.loading.references import with_references
from aifx.loading.restore import OpenTask, read_current, restore_run
from aifx.models.base import Head, Model
from aifx.objectives.base import Rows, Sums, Totals
from aifx.objectives.checks import check_metrics
from aifx.parallel.context import ForwardContext
from aifx.parallel.joining import current_group
from aifx.programs.build import Programs
from aifx.registry.versions import ModelDirectory
from aifx.runs.agreement import agree, facts_of_data
from aifx.runs.provenance import read_provenance
from aifx.specs import ArraySpec, Params, Specs
from aifx.tasks.base import Task, data_digest, data_settings, dataset_of, evaluation_source
from aifx.tasks.registry import load_task, open_task

logger = logging.getLogger(__name__)


def evaluate_split(
    programs: Programs,
    params: Params,
    frozen: Params,
    split: Split,
    *,
    num_batches: int | None = None,
    before_batch: Callable[[], None] = lambda: None,
    totals: dict[str, tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Metrics over a split, or over its first `num_batches` batches; the same bits each time on the same machine.

    The sums of the batches are added up in float64 and in order; `Rows` are joined. Bytes and examples are counted on
    the host, since programs contain no data. Each process of a job reads its own rows. An empty `totals` is filled with
    what the metrics are formed from. Raises DataError if the split has no batch, and what `before_batch` raises.
    """
    layout, dataset = programs.layout, dataset_of(programs.task)
    totals = {} if totals is None else totals
    rows: dict[str, list[Rows]] = {}
    counts: Counter[str] = Counter()
    pending: Sums = {}
    num_rows = 0
    for number, (batch, size) in enumerate(_batches(programs, split, num_batches)):
        current_group().mark(f"batch {number} of the {split} split")
        before_batch()
        placed = programs.place({name: values for name, values in batch.items() if name != TEXT_BYTES}, size)
        following = programs.eval_step(params, frozen, placed)  # runs while the last is added up
        for own in layout.own_rows(size):
            counts.update(dataset.counts({name: values[own] for name, values in batch.items()}))
        _add(totals, rows, pending, num_rows)
        pending, num_rows = following, size
    _add(totals, rows, pending, num_rows)
    for name, parts in rows.items():
        totals[name] = Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]
    return _metrics(programs, totals, current_group().total(counts))


def _batches(programs: Programs, split: Split, num_batches: int | None) -> Iterator[tuple[Batch, int]]:
    """The rows of each batch that this process reads, and how many rows the batch has."""
    source = evaluation_source(programs.task, programs.config, split)
    count = min((n for n in (source.num_batches, num_batches) if n is not None), default=None)
    if count is None:
        why = "the source of it has no end (num_batches is None)"
        hint = "aifx eval --split test    (without a seed, a source has each example once: docs/tasks.md)"
        raise DataError(f"the {split} split cannot be measured", why, hint)
    if not count:
        raise DataError(f"the {split} split has no batch", "its share of the data is empty", "aifx config show")
    with report_progress(f"evaluating the {split} split", count, "batches") as progress:
        rows = programs.layout.local_rows(source.batch_size)
        for step in range(count):
            yield source.read(step, rows), source.batch_size
            progress.advance(1)


def _add(
    totals: dict[str, tuple[Any, Any]], rows: dict[str, list[Rows]], sums: Mapping[str, tuple[Any, Any]], num_rows: int
) -> None:
    """Add the sums of a batch to `totals`, and append its rows to those before; `place` may have added some."""
    for name, found in jax.device_get(dict(sums)).items():
        if isinstance(found, Rows):
            rows.setdefault(name, []).append(Rows(*(column[:num_rows] for column in found)))
            continue
        total, weight = found
        before = totals.get(name, (0.0, 0.0))
        totals[name] = (before[0] + np.asarray(total, np.float64), before[1] + np.asarray(weight, np.float64))


def _metrics(programs: Programs, totals: Totals, counts: Mapping[str, int]) -> dict[str, Any]:
    everything = {**totals, **{name: (count, 1.0) for name, count in counts.items()}}
    return check_metrics(programs.objective, programs.objective.metrics(everything, programs.task.data))


def metric_names(programs: Programs, split: Split) -> set[str]:
    """The numbers that `evaluate_split` will return, known before anything is computed: the sums are traced."""
    counts = dataset_of(programs.task).counts(next(_batches(programs, split, 1))[0])
    made_up = {
        name: Rows(np.zeros(pair[0].shape, pair[0].dtype), np.ones(pair[1].shape))  # type: ignore[arg-type]
        if isinstance(pair, Rows)
        else (np.ones(pair[0].shape), np.ones(pair[1].shape))
        for name, pair in programs.eval_step.trace().items()
    }
    return set(scalars(_metrics(programs, made_up, dict.fromkeys(counts, 1))))


@dataclass(frozen=True)
class BetterLast:
    """Validation metrics of the last checkpoint and the best one, by the metric of the first gate."""

    best_by: str  # "max accuracy"
    last_step: int
    last_value: float
    best_step: int
    best_value: float


@dataclass(frozen=True)
class Report(Result):
    """The metrics of a checkpoint on a split and the verdict of the gates, as `aifx eval --json` prints them."""

    run: str
    step: int
    split: Split
    quantize: Quantization
    metrics: Mapping[str, Any]
    gates: tuple[GateResult, ...]
    better_last: BetterLast | None = None  # the last checkpoint, if it beats the best one by a gate's metric
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # metrics by the baseline's name
    slices: Slices = field(default_factory=dict)  # by column of eval.slices
    data: str = ""  # the versions of data sets that the split is of
    data_digest: str = ""  # of all rows with their splits, also of files
    model: str | None = None  # digest of the model version, with --model
    settings: Mapping[str, Any] = field(default_factory=dict)  # `measuring_settings`
    settings_digest: str = ""  # SHA-256 of them

    @property
    def passed(self) -> bool:
        return all(g.passed for g in self.gates)

    @property
    def parts(self) -> Sequence[tuple[str, Report]]:
        """The name of each measured part for people, and its report."""
        return [(f"{self.split} split", self)]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.passed else ExitCode.VERDICT


@dataclass(frozen=True)
class Part:
    """The metrics of a checkpoint on a split or a file, with what they were formed from."""

    data: str  # what people call it
    split: Split
    metrics: Mapping[str, Any]
    gates: tuple[GateResult, ...]
    baselines: Mapping[str, Mapping[str, float]]
    programs: Programs
    totals: Totals
    slices: Slices = field(default_factory=dict)


def measure_part(
    data: str, split: Split, gates: Sequence[Gate], programs: Programs, params: Params, frozen: Params
) -> Part:
    """Measure a checkpoint and the baselines on a split of the programs' data set.

    Raises UsageError for a gate on a metric that does not exist, before anything is measured.
    """
    check_slice_gates(gates, programs.config.eval.slices)
    if of_whole := [gate for gate in gates if not gate.is_of_slices]:
        check_names(of_whole, metric_names(programs, split))
    slices = measure_slices(programs, params, frozen, split)
    totals: dict[str, tuple[Any, Any]] = {}
    metrics = evaluate_split(programs, params, frozen, split, totals=totals)
    baselines = {
        name: finite(scalars(evaluate_split(baseline, weights, {}, split)))
        for name, baseline, weights in baseline_programs(programs, split)
    }
    results = evaluate_gates(gates, {**metrics, "slices": slices})
    return Part(data, split, metrics, results, baselines, programs, totals, slices)


def evaluate(
    run: RunDirectory,
    project: Project,
    *,
    split: Split | None = None,
    gates: Sequence[str] = (),
    step: StepChoice | None = None,
    overrides: Sequence[str] = (),
) -> Report:
    """Measure a run's checkpoint on a split and compare it with gates; the run keeps the report in eval/<step>.json.

    Args:
        split: None takes `eval.split`.
        gates: conditions in addition to `eval.gates`.
        step: the checkpoint, as `restore_run` takes it.
        overrides: `--set` strings over the run's configuration.

    Raises UsageError for a malformed gate, one on a metric that does not exist, or overrides that divide the data
    otherwise than the run did, before anything is measured.
    """
    return measure(run, project, split=split, gates=gates, step=step, overrides=overrides)[0]


def measure(
    run: RunDirectory,
    project: Project,
    *,
    split: Split | None = None,
    gates: Sequence[str] = (),
    step: StepChoice | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Report, Part]:
    """`evaluate`, with what the report was formed from."""
    asked = [parse_gate(expr) for expr in gates]
    check_overrides(run, project, overrides)

    trained = restore_run(run, project, step=step, overrides=overrides, open_task=opener(run, split))
    chosen: Split = split or trained.config.eval.split
    all_gates = [*map(parse_gate, trained.config.eval.gates), *asked]
    quantize = trained.config.eval.quantize
    with project_errors(trained.config.parts, project):
        programs, params, frozen = trained.programs(quantize)
        programs = with_references(programs, frozen, run)
        part = measure_part(f"{chosen} split", chosen, all_gates, programs, params, frozen)
    better = better_last(run, all_gates)
    digest = data_digest(trained.task, trained.config)
    settings = measuring_settings(trained)
    report = Report(
        run=run.name,
        step=trained.step,
        split=chosen,
        metrics=part.metrics,
        gates=part.gates,
        quantize=quantize,
        better_last=better if better is not None and better.last_step != trained.step else None,
        baselines=part.baselines,
        slices=part.slices,
        data=data_reference(trained.config.data, project),
        data_digest=digest,
        model=run.model_digest,
        settings=settings,
        settings_digest=sha256_of_json(settings),
    )
    if current_group().is_first:
        write_report(run, report)
    return report, part


def opener(run: RunDirectory, split: Split | None) -> OpenTask:
    """The way to open the task of a run with its data, or if the training data is gone with that of the split alone."""

    def opened(config: Config, project: Project, assets: Path) -> Task:
        try:
            task = open_task(config, project, assets)
            _compare_data(run, project, config, task)
        except DataError as error:
            task = _with_split_alone(split or config.eval.split, config, project, assets, error)
        device_kind = jax.local_devices()[0].device_kind
        agree(current_group(), lambda: facts_of_data(project, data_digest(task, config), device_kind))
        return task

    return opened


def data_reference(section: DataSection, project: Project) -> str:
    """The versions of data sets that `[data]` names, "name@<64 digits>"; "" if the data is files."""
    open_parts = getattr(section, "open_parts", None)
    parts = open_parts(project) if open_parts else ()
    return ", ".join(part.manifest.whole_reference for part in parts)


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def better_last(run: RunDirectory, gates: Iterable[Gate]) -> BetterLast | None:
    """The last checkpoint and the best one if the last one is better; None if it is not, or was not validated."""
    best_by = first_of(gates)
    checkpoints = [c for c in list_checkpoints(run.checkpoints) if c.score is not None]
    best = next((c.step for c in checkpoints if c.is_best), None)
    if best_by is None or best is None or (last := checkpoints[-1].step) == best:
        return None
    values: dict[int, float] = {}
    for record in read_jsonl(run.metrics):
        if record.get("step") in (last, best) and isinstance(validation := record.get("validation"), dict):
            value = best_by.value(validation)
            if value is not None:
                values[record["step"]] = value
    if len(values) < 2 or not best_by.is_better(values[last], values[best]):
        return None
    return BetterLast(str(best_by), last, values[last], best, values[best])


def _with_split_alone(split: Split, config: Config, project: Project, assets: Path, error: DataError) -> Task:
    """The task with the files of the split alone. Raises `error`, about the training data, if the split has none."""
    task = load_task(config, project, assets)
    dataset = None if task.format is None else task.format.open_split(split, project)
    if dataset is None:
        raise error
    logger.warning(f"{error.what}: aifx measures the files of data.{split} without knowing what was trained on")
    return replace(task, dataset=dataset)


def _compare_data(run: RunDirectory, project: Project, config: Config, task: Task) -> None:
    """Warn when the data is not what the run was trained on: text that is held out now may have been learnt."""
    whole: dict[str, str] = {}
    if isinstance(run, ModelDirectory):
        before = (run.content.data or {}).get("digest")
        if (reference := getattr(config.data, "dataset", None)) is not None:  # a run has the version that it means
            whole["dataset"] = whole_reference(reference, config.apply_to(project))
            config = replace(config, data=config.data.model_copy(update=whole))
    else:
        before = read_provenance(run).get("data_digest")
    if before is None or before == data_digest(task, config) or _keeps_splits(run, config.data, project):
        return
    # The digest covers how the data is read as well. Look again without the overrides that change that.
    own = read_current(run, project) if isinstance(run, ModelDirectory) else read_config(run.config, project)
    own = replace(own, data=own.data.model_copy(update=whole))
    is_same = data_settings(own) == data_settings(config)
    if is_same or before != data_digest(open_task(own, project, run.assets), own):
        logger.warning(
            f"the data has changed since {run.title} was trained: what is held out now may be what it learnt from"
        )


def _keeps_splits(run: RunDirectory, data: object, project: Project) -> bool:
    """Whether `aifx data split` left each row that a model version was trained on in its split."""
    trained_on = set((run.content.data or {}).get("versions", ())) if isinstance(run, ModelDirectory) else set()
    open_parts = getattr(data, "open_parts", None)
    kept = set[str]()
    for part in open_parts(project) if open_parts and trained_on else ():
        manifest, catalog = part.manifest, part.catalog
        while manifest.made_by.name == "split" and (earlier := manifest.facts.get("continues")):
            kept.add(earlier)
            if not catalog.holds(earlier):
                break
            manifest = catalog.manifest(earlier)
    return bool(trained_on) and trained_on <= kept


def write_report(run: RunDirectory, report: Report) -> None:
    """Put a report among those of its step, atomically; docs/run-directory.md has the format."""
    measured = {"metrics": report.metrics, "gates": report.gates, "passed": report.passed}
    measured |= {"data": report.data, "data_digest": report.data_digest}
    name = report.split if report.quantize == "none" else f"{report.split}-{report.quantize}"
    with reports_of_step(run, report.step) as kept:
        others = {"baselines": report.baselines, "slices": report.slices, "measured_at": time.time()}
        how = {"settings": report.settings, "settings_digest": report.settings_digest}
        kept["splits"][name] = measured | others | how


@contextmanager
def reports_of_step(run: RunDirectory, step: int) -> Iterator[dict[str, Any]]:
    """The reports of a step, to be changed: written back in one piece, while other evaluations wait."""
    path = run.eval / f"{step}.json"
    make_folders(run.eval, below=run.path)
    with exclusive(run.eval / ".lock"):  # another evaluation of the step may end at the same time
        remove_temporary(run.eval)
        kept: dict[str, Any] = {"schema_version": 1, "run": run.name, "step": step, "model": run.model_digest}
        kept |= {"splits": {}, "datasets": [], "comparisons": []}
        # There is no report yet, or the file is not one: start a new one.
        with suppress(OSError, ValueError, TypeError, AttributeError):
            found = parse_json(read_file(path))
            kept |= {"splits": dict(found.get("splits", {})), "datasets": list(found.get("datasets", []))}
            kept["comparisons"] = list(found.get("comparisons", []))
        yield kept
        write_json(path, kept)


OUTPUTS = "baseline_outputs"
"""The field of a batch with what a baseline predicts: `[rows, outputs]`."""


@dataclass(frozen=True)
class GivenOutputs(Model):
    """A model that reads its outputs from the batch."""

    num_outputs: int

    def specs(self) -> Specs:
        shape = (self.num_outputs, self.num_outputs)
        return {"output": ArraySpec(shape, (None, None), identity)}

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        return batch[OUTPUTS]

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return Head(params["output"])

    def flops(self, rows: int) -> int:
        return 0


@dataclass(frozen=True)
class WithOutputs:
    """A split of a data set, and what a baseline predicts for each of its examples, `[examples, outputs]`."""

    dataset: Dataset
    outputs: np.ndarray
    spec: DataSpec

    @property
    def digest(self) -> str:
        return self.dataset.digest

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> OutputsSource:
        return OutputsSource(self.dataset.source(split, batch_size, seed=seed), self.outputs)

    def counts(self, batch: Batch) -> dict[str, int]:
        return self.dataset.counts(batch)


@dataclass(frozen=True)
class OutputsSource:
    """The batches of a source without a seed, with the outputs of their examples."""

    source: BatchSource
    outputs: np.ndarray

    @property
    def batch_size(self) -> int:
        return self.source.batch_size

    @property
    def num_batches(self) -> int | None:
        return self.source.num_batches

    def read(self, number: int, rows: slice) -> Batch:
        places = np.arange(number * self.batch_size, (number + 1) * self.batch_size)[rows]
        is_real = places < len(self.outputs)
        outputs = self.outputs[np.where(is_real, places, 0)] * is_real[:, None]
        return {**self.source.read(number, rows), OUTPUTS: outputs}


def identity(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return jax.numpy.eye(shape[0], dtype=dtype)


def baseline_programs(programs: Programs, split: Split) -> Iterator[tuple[str, Programs, Params]]:
    """The baselines that the data offers for a split: a name, and programs and parameters to evaluate as a model's.

    Thresholds of classes are those of the model's probabilities, so baselines go without.
    """
    form = programs.task.format
    task = replace(programs.task, objective=programs.objective.with_thresholds({}))
    for name, values in () if form is None else form.baselines(dataset_of(task), split):
        outputs = np.asarray(values, np.float32)
        num_outputs = outputs.shape[1]
        spec = replace(task.data, fields={**task.data.fields, OUTPUTS: Field((num_outputs,), "float32")})
        dataset = WithOutputs(dataset_of(task), outputs, spec)
        given = replace(task, model=GivenOutputs(num_outputs), data=spec, dataset=dataset)
        weights = {"output": np.eye(num_outputs, dtype=np.float32)}
        yield name, replace(programs, task=given, casts=False), weights
