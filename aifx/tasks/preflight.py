"""Checks of a configuration against what the project holds, before any work starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aifx.config import Config
from aifx.config.best_by import AUTO, best_by_of, check_metric
from aifx.config.diagnostics import Mistake, refuse
from aifx.config.gates import check_names, parse_gate
from aifx.config.sections import DataSection
from aifx.core.errors import AifxError, ConfigError, UsageError
from aifx.core.project import Project


def check_project(config: Config, project: Project) -> None:
    """Raises ConfigError that lists every unknown metric and every file that is missing."""
    refuse(_mistakes(config, project))


def check_best_by(config: Config) -> None:
    """Raises ConfigError if `checkpoint.best_by` names a metric that the task does not report."""
    best_by = best_by_of(config)
    known = declared_metrics(config)
    if known and config.train.validate_every and not _is_class_metric(best_by.metric, config):
        check_metric(best_by, known)


def _mistakes(config: Config, project: Project) -> Iterator[Mistake]:
    known = declared_metrics(config)
    for gate in map(parse_gate, config.eval.gates if known else ()):
        try:
            if not _is_class_metric(gate.name, config):
                check_names([gate], known)
        except UsageError as error:
            yield _mistake(config, "eval.gates", error, "change eval.gates: aifx config keys eval")
    if config.checkpoint.best_by != AUTO:  # otherwise the metric is a gate's
        try:
            check_best_by(config)
        except ConfigError as error:
            yield _mistake(config, "checkpoint.best_by", error, error.hint)
    if config.finetune.base_run is not None:
        try:
            project.existing_run(config.finetune.base_run)
        except UsageError as error:
            yield _mistake(config, "finetune.base_run", error, error.hint)
    if isinstance(config.data, DataSection):
        for key, found in config.data.check_files(project):
            yield _mistake(config, key, found, found.hint)


def _mistake(config: Config, key: str, error: AifxError, hint: str) -> Mistake:
    where = config.origin(key).where
    return Mistake("" if where == "default" else where, error.what, error.why, hint)


def declared_metrics(config: Config) -> Sequence[str]:
    """The metrics that `aifx eval` will report; empty if the task does not declare them."""
    if config.parts.task is not None:
        return tuple(getattr(config.parts.task, "metric_names", ()))
    objective = config.parts.objective
    classes: Sequence[str] = getattr(config.data, "classes", ())
    per_class = (f"per_class.{name}.{metric}" for name in classes for metric in objective.class_metrics)
    return (*objective.metrics, *per_class) if objective.metrics else ()


def _is_class_metric(name: str, config: Config) -> bool:
    """Whether `name` is the metric of a class that only the data names."""
    if config.parts.task is not None or getattr(config.data, "classes", None):
        return False
    group, _, rest = name.partition(".")
    return group == "per_class" and rest.rpartition(".")[2] in config.parts.objective.class_metrics
