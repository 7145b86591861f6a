"""The functions that `aifx` offers to Python. docs/api.md documents them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from aifx.core.errors import UsageError
from aifx.core.project import find_project, open_run
from aifx.core.steps import parse_step

if TYPE_CHECKING:
    from aifx.benchmarking.results import Report as BenchReport
    from aifx.data.frames import Rows
    from aifx.data.splits import Split
    from aifx.evaluation.dataset import DatasetReports
    from aifx.evaluation.held_out import Report as Evaluation
    from aifx.health.report import Report as HealthReport
    from aifx.loading.model import LoadedModel
    from aifx.scaffold.projects import Scaffolded
    from aifx.serving.generate import GeneratedText
    from aifx.training.records import TrainResult

__all__ = ["bench", "doctor", "evaluate", "generate", "init", "load", "predict", "train"]

StrPath = str | PathLike[str]
Step = int | str | None
"""A step that has a checkpoint, "best", "last", or None for `eval.checkpoint`."""
Settings = Mapping[str, Any] | None
"""Values over those of `aifx.toml`, by key: `{"train.num_steps": 100}`."""


def init(
    folder: StrPath,
    template: str = "language-model",
    *,
    answers: Mapping[str, Any] | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Scaffolded:
    """Start a project from a template, and return what was written.

    Args:
        template: a bundled one by name, or a path or git URL of a copier template.
        answers: to the template's questions; the defaults answer the others.
        force: also write into a folder that is not empty. Files that exist stay; new ones of the same name get `.new`.
        dry_run: write nothing.
    """
    from aifx.scaffold.projects import scaffold

    return scaffold(Path(folder), template, data=answers or {}, ask=False, force=force, dry_run=dry_run)


def train(
    project: StrPath = ".",
    run: str = "main",
    *,
    config: StrPath | None = None,
    settings: Settings = None,
    fork_from: str | None = None,
    fork_at: int | str = "last",
    refit: bool = False,
) -> TrainResult:
    """Train a run to its end, from its last checkpoint if it has one.

    A loss that is not finite is a result with the status "diverged". Ctrl-C raises KeyboardInterrupt; the next call
    resumes from the last checkpoint.

    Args:
        project: a folder in the project.
        config: a file to read instead of the project's `aifx.toml`.
        settings: values over those of the file, by key: `{"train.num_steps": 100}`.
        fork_from: start the run from a checkpoint of this one.
        fork_at: which checkpoint: a step, "best" or "last".
        refit: train the settings of the finished run `run` on its training and validation rows, as the run `RUN-refit`.
    """
    from aifx.kinds import load_config
    from aifx.training.run import train as train_run

    found = find_project(Path(project))
    if refit:
        from aifx.training.resume_checks import open_refit

        if (other := "config" if config is not None else "fork_from" if fork_from is not None else None) is not None:
            why = "a refit is a new run with the settings of its origin"
            raise UsageError(f"refit and {other} cannot be used together", why, f"remove {other}")
        refitted = open_refit(found.existing_run(run), found, overrides(settings))
        return train_run(found, refitted.config, f"{run}-refit", refit=refitted)
    loaded = load_config(found, overrides(settings), file=None if config is None else Path(config))
    at = parse_step(fork_at)
    return train_run(found, loaded, run, fork_from=fork_from, fork_at="last" if at is None else at)


@overload
def evaluate(
    run: StrPath, *, split: Split | None = ..., gates: Sequence[str] = ..., step: Step = ..., settings: Settings = ...
) -> Evaluation: ...


@overload
def evaluate(
    run: StrPath, *, data: Sequence[StrPath], gates: Sequence[str] = ..., step: Step = ..., settings: Settings = ...
) -> DatasetReports: ...


def evaluate(
    run: StrPath,
    *,
    split: Split | None = None,
    data: Sequence[StrPath] = (),
    gates: Sequence[str] = (),
    step: Step = None,
    settings: Settings = None,
) -> Evaluation | DatasetReports:
    """Measure a checkpoint on a held-out split, or on files of other data, and compare it with gates.

    The report is also kept in the run.

    Args:
        run: the run's folder.
        split: "test", "validation" or "train"; `eval.split` by default.
        data: files to measure instead of a split.
        gates: conditions in addition to `eval.gates`: "loss <= 3.5".
    """
    directory, project = open_run(run)
    how: dict[str, Any] = {"gates": gates, "step": parse_step(step), "overrides": overrides(settings)}
    if data:
        from aifx.evaluation.dataset import evaluate_files

        if split is not None:
            raise UsageError("split cannot be used with data", "aifx measures all of a file")
        return evaluate_files(directory, project, [Path(path) for path in data], **how)
    from aifx.evaluation.held_out import evaluate as evaluate_run

    return evaluate_run(directory, project, split=split, **how)


def load(run: StrPath, *, step: Step = None, settings: Settings = None) -> LoadedModel:
    """The model of a run, ready to make predictions. Needs the run alone, not the data that it was trained on.

    >>> model = aifx.load("runs/main")
    >>> for prediction in model.predict([{"text": "Call me Ishmael."}]):
    ...     print(prediction["bits_per_byte"])

    Args:
        run: the run's folder.
        step: a step that has a checkpoint, "best" or "last"; by default `eval.checkpoint` of the run's project.

    Raises UsageError if there is no run, CheckpointError for a checkpoint that is missing or damaged.
    """
    from aifx.loading.model import LoadedModel
    from aifx.loading.restore import restore_run

    directory, project = open_run(run)
    return LoadedModel(restore_run(directory, project, step=parse_step(step), overrides=overrides(settings)))


def predict(run: StrPath, rows: Rows, *, step: Step = None) -> Iterator[dict[str, Any]]:
    """A prediction for each row, in order. `load` keeps a model for more than one call.

    Args:
        run: the run's folder.
        rows: mappings with the fields that the task reads, such as {"text": "Call me Ishmael."}; a data frame of
            pandas or Polars, an Arrow table, or NumPy arrays with names.
    """
    return load(run, step=step).predict(rows)


def generate(
    run: StrPath,
    prompt: str | None = None,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    step: Step = None,
    chat: bool = False,
    system: str | None = None,
) -> GeneratedText:
    """Text from a run's language model. The same seed writes the same text.

    Args:
        run: the run's folder.
        prompt: the text to continue. What is not given comes from `[generate]` of the project.
        chat: whether the prompt is a user's message, which the model answers.
        system: with `chat`, a system message before it.
    """
    from aifx.loading.restore import restore_run
    from aifx.serving.generate import Chat, GeneratedText, write_text

    directory, project = open_run(run)
    trained = restore_run(directory, project, step=parse_step(step))
    given = {"prompt": prompt, "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    settings = trained.config.generate.model_copy(update={k: v for k, v in given.items() if v is not None})
    how = Chat(system) if chat else None
    return GeneratedText.of(trained, settings, seed, "".join(write_text(trained, settings, seed=seed, chat=how)), how)


def doctor(
    *, only: Sequence[str] = (), skip: Sequence[str] = (), site: StrPath | None = None, sample_s: float = 0.0
) -> HealthReport:
    """Check the health of this machine.

    Args:
        only: rules or families to evaluate, such as "nvidia" or "disk.*".
        skip: rules or families to leave out.
        site: the site's file; by default the one that `aifx doctor` reads.
        sample_s: seconds between two readings, from which rates are computed.
    """
    from aifx.health.check import check, collect
    from aifx.health.host import Host
    from aifx.health.rules import load_rules, read_site, select

    began, sites = time.monotonic(), read_site(None if site is None else Path(site))
    rules = select(load_rules(sites).values(), only, skip)
    return check(collect(Host(), rules, sample_s), rules, sites, began)


def bench(
    *suites: str, project: StrPath = ".", quick: bool = False, launches: int = 1, settings: Settings = None
) -> BenchReport:
    """Measure this machine or a project, and return a report with confidence intervals.

    Args:
        suites: "hardware", "kernels", "train", "data", "checkpoint", "startup". A server is measured by
            `aifx bench serve` alone.
        project: a folder in the project, for the suites that need one.
        quick: measure fewer sizes for a shorter time.
        launches: processes per suite. Three or more say how much launches differ.
        settings: values over those of `aifx.toml`, by key.

    Raises AifxError if a suite fails.
    """
    from aifx.benchmarking import measured_peaks
    from aifx.benchmarking.results import Request
    from aifx.benchmarking.runner import Launches, check_configuration
    from aifx.benchmarking.suites import SUITES

    for suite in suites:
        if suite not in SUITES:
            raise UsageError(f"there is no suite {suite!r}", f"one of: {', '.join(SUITES)}", "aifx bench --help")
    request = Request(suites=list(suites), quick=quick, options={"set": overrides(settings)})
    check_configuration(request, Path(project))
    report = measured_peaks.keep(Launches(request, folder=Path(project)).run(dict.fromkeys(suites, launches)))
    report.raise_failure()
    return report


def overrides(settings: Settings) -> list[str]:
    """Settings as `--set` takes them."""
    from aifx.config.toml import literal

    return [f"{key}={literal(value)}" for key, value in (settings or {}).items()]
