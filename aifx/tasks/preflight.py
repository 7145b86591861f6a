"""Checks of a configuration against what the project holds, before any work starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from aifx.config import Config
from aifx.config.best_by import AUTO, best_by_of, check_metric
from aifx.config.diagnostics import Mistake, refuse
from aifx.config.gates import check_names, parse_gate
from aifx.config.sections import DataSection
from aifx.core.errors import ConfigError, UsageError
from aifx.core.project import Project


def check_project(config: Config, project: Project) -> None:
    """Raises ConfigError that lists every unknown metric and every file that is missing."""
    refuse([*_gates(config), *_best_by(config), *_files(config, project)])


def check_best_by(config: Config) -> None:
    """Raises ConfigError if `checkpoint.best_by` names a metric that the task does not report."""
    best_by = best_by_of(config)
    known = declared_metrics(config)
    if known and config.train.validate_every and not _is_class_metric(best_by.metric, config):
        check_metric(best_by, known)


def _best_by(config: Config) -> Iterator[Mistake]:
    if config.checkpoint.best_by == AUTO:
        return  # a gate's metric, which is checked with the gates
    try:
        check_best_by(config)
    except ConfigError as error:
        yield Mistake(_where(config, "checkpoint.best_by"), error.what, error.why, error.hint)


def _gates(config: Config) -> Iterator[Mistake]:
    known = declared_metrics(config)
    for expr in config.eval.gates if known else ():
        gate = parse_gate(expr)
        if _is_class_metric(gate.name, config):
            continue
        try:
            check_names([gate], known)
        except UsageError as error:
            yield Mistake(
                _where(config, "eval.gates"), error.what, error.why, "change eval.gates: aifx config keys eval"
            )


def declared_metrics(config: Config) -> Sequence[str]:
    """The metrics that `aifx eval` will report; empty if the task does not declare them."""
    if config.parts.task is not None:
        return tuple(getattr(config.parts.task, "metric_names", ()))
    objective = config.parts.objective
    classes: Sequence[str] = getattr(config.data, "classes", ())
    per_class = (f"per_class.{name}.{metric}" for name in classes for metric in objective.class_metrics)
    return (*objective.metrics, *per_class) if objective.metrics else ()


def _is_class_metric(name: str, config: Config) -> bool:
    """Whether `name` is the metric of a class that only the data names: its number."""
    if config.parts.task is not None or getattr(config.data, "classes", None):
        return False
    pattern = rf"per_class\.\d+\.({'|'.join(config.parts.objective.class_metrics)})"
    return bool(config.parts.objective.class_metrics) and re.fullmatch(pattern, name) is not None


def _files(config: Config, project: Project) -> Iterator[Mistake]:
    if isinstance(config.data, DataSection):
        for key, error in config.data.check_files(project):
            yield Mistake(_where(config, key), error.what, error.why, error.hint)


def _where(config: Config, key: str) -> str:
    where = config.origin(key).where
    return "" if where == "default" else where
