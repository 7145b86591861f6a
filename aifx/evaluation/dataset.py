"""Measuring a model on data sets that no run was trained on: files and folders that `aifx eval --data` names."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from aifx.config.gates import GateResult, parse_gate
from aifx.config.project_errors import project_errors
from aifx.config.sections import Quantization
from aifx.core.digests import sha256_of_file, sha256_of_json
from aifx.core.errors import DataError, ExitCode
from aifx.core.json_values import plain
from aifx.core.project import Project, RunDirectory
from aifx.core.results import Result
from aifx.core.steps import StepChoice
from aifx.data.base import undefined
from aifx.data.readers.sources import check_regular
from aifx.evaluation.held_out import Part, measure_part, reports_of_step
from aifx.evaluation.settings import DATASET_READING, check_overrides, measuring_settings
from aifx.evaluation.slices import Slices
from aifx.loading.references import with_references
from aifx.loading.restore import restore_run
from aifx.parallel.joining import current_group
from aifx.runs.agreement import agree, facts_of_data


@dataclass(frozen=True)
class DatasetReport:
    """The metrics of a checkpoint on a data set. `digest` is the SHA-256 of the file, or of what a folder holds."""

    name: str
    digest: str
    metrics: Mapping[str, Any]
    gates: tuple[GateResult, ...]
    baselines: Mapping[str, Mapping[str, float]]  # metrics by the baseline's name
    slices: Slices = field(default_factory=dict)  # by column of eval.slices
    settings: Mapping[str, Any] = field(default_factory=dict)  # that the figures depend on
    settings_digest: str = ""  # SHA-256 of them

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class DatasetReports(Result):
    """The reports of one checkpoint, one per data set: what `aifx eval --data --json` prints."""

    run: str
    step: int
    quantize: Quantization
    datasets: tuple[DatasetReport, ...]
    model: str | None = None  # digest of the model version, with --model

    @property
    def passed(self) -> bool:
        return all(report.passed for report in self.datasets)

    @property
    def parts(self) -> Sequence[tuple[str, DatasetReport]]:
        """The name of each measured data set for people, and its report."""
        return [(f"{one.name} ({one.digest[:12]})", one) for one in self.datasets]

    @property
    def better_last(self) -> None:
        """Nothing: files were not measured during the training."""

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.passed else ExitCode.VERDICT


def evaluate_files(
    run: RunDirectory,
    project: Project,
    paths: Sequence[Path],
    *,
    gates: Sequence[str] = (),
    step: StepChoice | None = None,
    overrides: Sequence[str] = (),
) -> DatasetReports:
    """Measure a run's checkpoint on each file or folder; the run keeps the reports in eval/<step>.json.

    Takes and raises what `aifx.evaluation.held_out.evaluate` does. The data that the run was trained on is not read.
    """
    return measure_files(run, project, paths, gates=gates, step=step, overrides=overrides)[0]


def measure_files(
    run: RunDirectory,
    project: Project,
    paths: Sequence[Path],
    *,
    gates: Sequence[str] = (),
    step: StepChoice | None = None,
    overrides: Sequence[str] = (),
) -> tuple[DatasetReports, tuple[Part, ...]]:
    """`evaluate_files`, with what the reports were formed from."""
    asked = [parse_gate(expr) for expr in gates]
    files = {path.resolve(): path for path in paths}
    digests = {path: None if path.is_dir() else digest_of(path) for path in files.values()}
    check_overrides(run, project, overrides, DATASET_READING)
    trained = restore_run(run, project, step=step, overrides=overrides)
    all_gates = [*map(parse_gate, trained.config.eval.gates), *asked]
    quantize = trained.config.eval.quantize
    settings = measuring_settings(trained)
    how = (settings, sha256_of_json(settings))
    form = trained.task.format
    if form is None:
        raise undefined(type(trained.task), "format", "measure other data")
    reports, parts = [], []
    with project_errors(trained.config.parts, project):
        programs, params, frozen = trained.programs(quantize)
        for path, digest in digests.items():
            dataset = form.open_file(path)
            device_kind = trained.layout.device_kind
            facts = partial(facts_of_data, project, digest or dataset.digest, device_kind, file=str(path))
            agree(current_group(), facts)
            of_file = replace(programs, task=replace(programs.task, dataset=dataset))
            of_file = with_references(of_file, frozen, run)
            name, digest = display_name(path, project), digest or dataset.digest
            part = measure_part(f"{name} ({digest[:12]})", "test", all_gates, of_file, params, frozen)
            report = DatasetReport(name, digest, part.metrics, part.gates, part.baselines, part.slices, *how)
            if current_group().is_first:
                keep_report(run, trained.step, quantize, report)
            reports.append(report)
            parts.append(part)
    return DatasetReports(run.name, trained.step, quantize, tuple(reports), run.model_digest), tuple(parts)


def digest_of(path: Path, option: str = "--data") -> str:
    """SHA-256 of the file. Raises DataError for what is no file that can be read."""
    try:
        check_regular(path, f"{option} {path}", "a data set is a file", "aifx eval --data FILE")
        return sha256_of_file(path)
    except OSError as error:
        raise DataError(f"{option} {path} cannot be read", error.strerror or str(error), f"ls -l {path}") from error


def display_name(path: Path, project: Project) -> str:
    """The path below the project, or as it was given."""
    whole = path.resolve()
    return str(whole.relative_to(project.root)) if whole.is_relative_to(project.root) else str(path)


def keep_report(run: RunDirectory, step: int, quantize: Quantization, report: DatasetReport) -> None:
    """Put a report among those of its step, in place of an older one of the same data set and quantization."""
    measured = {"passed": report.passed, "quantize": quantize, "measured_at": time.time()}
    entry = plain(report) | measured

    def key(kept: Any) -> list[Any]:
        return [kept.get(name) for name in ("name", "digest", "quantize")] if isinstance(kept, dict) else []

    with reports_of_step(run, step) as kept:
        kept["datasets"] = [old for old in kept["datasets"] if key(old) != key(entry)] + [entry]
