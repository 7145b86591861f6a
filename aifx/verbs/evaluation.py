"""Measuring models on held-out data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from aifx.core.errors import UsageError
from aifx.core.steps import parse_step
from aifx.verbs.arguments import Settings, Step, StrPath, overrides
from aifx.verbs.jobs import OnLost, is_first_of_job, joined_job
from aifx.verbs.models import is_reference, is_vacant, open_model, open_registry

if TYPE_CHECKING:
    from aifx.data.splits import Split
    from aifx.evaluation.against import Comparison, FirstModel
    from aifx.evaluation.dataset import DatasetReport, DatasetReports
    from aifx.evaluation.held_out import BetterLast, Part
    from aifx.evaluation.held_out import Report as Evaluation
    from aifx.evaluation.shadow import ShadowReport
    from aifx.evaluation.slices import ColumnSlices


@overload
def evaluate(
    run: StrPath,
    *,
    split: Split | None = ...,
    gates: Sequence[str] = ...,
    step: Step = ...,
    settings: Settings = ...,
    trust_code: str | None = ...,
    html: StrPath | None = ...,
    on_lost: OnLost = ...,
) -> Evaluation: ...


@overload
def evaluate(
    run: StrPath,
    *,
    data: Sequence[StrPath],
    gates: Sequence[str] = ...,
    step: Step = ...,
    settings: Settings = ...,
    trust_code: str | None = ...,
    html: StrPath | None = ...,
    on_lost: OnLost = ...,
) -> DatasetReports: ...


@overload
def evaluate(
    run: StrPath,
    *,
    split: Split | None = ...,
    data: Sequence[StrPath] = ...,
    gates: Sequence[str] = ...,
    step: Step = ...,
    settings: Settings = ...,
    trust_code: str | None = ...,
    html: StrPath | None = ...,
    on_lost: OnLost = ...,
) -> Evaluation | DatasetReports: ...


def evaluate(
    run: StrPath,
    *,
    split: Split | None = None,
    data: Sequence[StrPath] = (),
    gates: Sequence[str] = (),
    step: Step = None,
    settings: Settings = None,
    trust_code: str | None = None,
    html: StrPath | None = None,
    on_lost: OnLost = lambda _: None,
) -> Evaluation | DatasetReports:
    """Measure a checkpoint on a held-out split, or on files of other data, and compare it with gates.

    The report is also kept in the run. The verdict is bad if a gate fails. With `data`, each file has a report of its
    own, and the data that the run was trained on is not read.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        split: "test", "validation" or "train"; `eval.split` by default.
        data: files to measure instead of a split.
        gates: conditions in addition to `eval.gates`: "loss <= 3.5".
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        settings: values over those of the run's configuration, by key.
        trust_code: digest of a model version whose own code may run.
        html: file to write the report to, too, as a page with the worst errors.
        on_lost: called in a job of several processes if another one is lost, before this one ends.

    Example:
        >>> report = aifx.evaluate("runs/main", gates=["loss <= 99"])
        >>> report.passed
        True
        >>> [one.passed for one in aifx.evaluate("runs/main", data=["texts/times.txt"]).datasets]
        [True]
    """
    files = [Path(path) for path in data]
    if files and split is not None:
        why = "a data set is measured whole"
        raise UsageError("--split cannot be used with --data", why, f"aifx eval --data {files[0]}")
    _check_gates(gates)
    directory, project = open_model(run, trust_code)
    asked = {"--split": split, "--data": list(map(str, files)), "--step": step, "--gate": list(gates)}
    how: dict[str, Any] = {"gates": gates, "step": parse_step(step), "overrides": overrides(settings)}
    with joined_job("eval", directory, project, settings, on_lost, **asked):
        report: Evaluation | DatasetReports
        parts: Sequence[Part]
        if files:
            from aifx.evaluation.dataset import measure_files

            report, parts = measure_files(directory, project, files, **how)
        else:
            from aifx.evaluation.held_out import measure

            report, part = measure(directory, project, split=split, **how)
            parts = [part]
    if html is not None and is_first_of_job():
        from aifx.core.pages import write_page
        from aifx.evaluation.page import report_page

        write_page(report_page(report, parts), Path(html))
    return report


def evaluate_benchmark(
    run: StrPath,
    *files: StrPath,
    chat: bool = False,
    gates: Sequence[str] = (),
    step: Step = None,
    settings: Settings = None,
    trust_code: str | None = None,
    on_lost: OnLost = lambda _: None,
) -> DatasetReports:
    """Ask a language model the questions of files, and compare its answers with gates.

    The report is also kept in the run. The verdict is bad if a gate fails.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        files: with questions.
        chat: ask each question as a user's message in a chat.
        gates: conditions: "acc_norm_low >= 0.3".
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        settings: values over those of the run's configuration, by key.
        trust_code: digest of a model version whose own code may run.
        on_lost: called in a job of several processes if another one is lost, before this one ends.

    Example:
        >>> aifx.evaluate_benchmark("runs/main", "questions.jsonl").passed
        True
    """
    from aifx.evaluation.benchmark import measure_benchmarks

    _check_gates(gates)
    directory, project = open_model(run, trust_code)
    paths = [Path(file) for file in files]
    asked = {"--benchmark": list(map(str, paths)), "--step": step, "--gate": list(gates)}
    how: dict[str, Any] = {"gates": gates, "step": parse_step(step), "overrides": overrides(settings)}
    with joined_job("eval", directory, project, settings, on_lost, **asked):
        return measure_benchmarks(directory, project, paths, chat=chat, **how)[0]


def compare_models(
    run: StrPath,
    against: StrPath,
    *,
    split: Split | None = None,
    data: StrPath | None = None,
    metric: str | None = None,
    margin: float | None = None,
    look: int = 1,
    step: Step = None,
    against_step: Step = None,
    settings: Settings = None,
    trust_code: str | None = None,
    allow_first: bool = False,
) -> Comparison | FirstModel:
    """Compare the checkpoints of two runs on the same rows, by a paired bootstrap over groups of rows.

    The comparison is also kept in the first run. The verdict is good if the first is better, or not worse than the
    margin.

    Args:
        run: the run's folder, or a model version: "fraud@production".
        against: the same of what it is compared with.
        split: "test", "validation" or "train"; `eval.split` by default.
        data: a file or folder to measure instead of a split.
        metric: what decides: "max accuracy". By default `checkpoint.best_by` of the first run.
        margin: loss of the metric up to which the first is not worse; by default `eval.margin`.
        look: how many comparisons there were on this data, with this one, at least. If one of the two is a model
            version, it is one more than its registry has of this data and split.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint`.
        against_step: that of the other run.
        settings: values over those of the configurations of both runs, by key.
        trust_code: digest of a model version whose own code may run.
        allow_first: the verdict is "first", a good one, if `against` is an alias that means no version yet.

    Example:
        >>> found = aifx.compare_models("runs/main", "runs/main", margin=0.1, settings={"eval.group": "_row"})
        >>> found.verdict
        'not worse'
    """
    from aifx.config.best_by import parse_best_by
    from aifx.evaluation.against import compare_runs, first_model
    from aifx.registry.state import looks_at

    best_by = None if metric is None else parse_best_by(metric, "--metric")
    directory, project = open_model(run, trust_code if is_reference(run) else None)
    if allow_first and is_vacant(wanted := os.fspath(against)):
        return first_model(directory, project, wanted, parse_step(step))
    names = [os.fspath(model) for model in (run, against) if is_reference(model)]
    ledgers = [open_registry(name)[0].find(name)[0] for name in names]
    return compare_runs(
        directory,
        project,
        open_model(against, trust_code if is_reference(against) else None),
        split=split,
        data=None if data is None else Path(data),
        metric=best_by,
        margin=margin,
        look=look,
        earlier_looks=lambda digest, split: max((looks_at(state, digest, split) for state in ledgers), default=0),
        step=parse_step(step),
        against_step=parse_step(against_step),
        overrides=overrides(settings),
    )


def compare_shadow(
    records: StrPath,
    *,
    labels: StrPath | None = None,
    target: str = "target",
    metric: str | None = None,
    margin: float | None = None,
    look: int = 1,
) -> ShadowReport:
    """Compare the answers of two models to the same requests, which a server with a second model recorded.

    If outcomes of 30 requests are known, a paired bootstrap over requests decides whether the second model is better.
    The verdict is bad if it is neither better nor not worse than the margin.

    Args:
        records: the shadow.jsonl of a server, or a folder with such files.
        labels: a file with the columns `id`, the id of a request, and the outcome; `row` if a request has several.
        target: the column of the outcome in `labels`, or in the recorded rows themselves.
        metric: what decides: "max accuracy". By default accuracy, otherwise loss or mean_absolute_error.
        margin: loss of the metric up to which the second model is not worse.
        look: how many comparisons there were of these records, with this one.

    Example:
        >>> aifx.compare_shadow("runs/main/shadow.jsonl")
        Traceback (most recent call last):
        ...
        aifx.core.errors.DataError: ...
    """
    from aifx.config.best_by import parse_best_by
    from aifx.evaluation.shadow import compare_shadow as compare

    best_by = None if metric is None else parse_best_by(metric, "--metric")
    known = None if labels is None else Path(labels)
    return compare(Path(records), labels=known, target=target, metric=best_by, margin=margin, look=look)


def _check_gates(gates: Sequence[str]) -> None:
    """Refuse malformed gates before JAX is loaded. Raises UsageError."""
    from aifx.config.gates import parse_gate

    for gate in gates:
        parse_gate(gate)
