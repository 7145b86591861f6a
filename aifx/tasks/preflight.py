"""Checks of a configuration against what the project holds, before any work starts."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from aifx.config import Config, import_task
from aifx.config.best_by import AUTO, best_by_of, check_metric
from aifx.config.diagnostics import Mistake, refuse
from aifx.config.gates import check_names, parse_gate
from aifx.config.sections import LanguageDataSection, VisionDataSection
from aifx.config.task_sections import BUNDLED_METRICS, PER_CLASS_METRICS
from aifx.core.errors import ConfigError, DataError, UsageError
from aifx.core.project import Project


def check_project(config: Config, project: Project) -> None:
    """Raises ConfigError that lists every unknown metric and every file that is missing."""
    refuse([*_gates(config, project), *_best_by(config, project), *_files(config, project)])


def check_best_by(config: Config, project: Project) -> None:
    """Raises ConfigError if `checkpoint.best_by` names a metric that the task does not report."""
    best_by = best_by_of(config)
    known = declared_metrics(config, project)
    if known and config.train.validate_every and not _is_class_metric(best_by.metric, config):
        check_metric(best_by, known)


def _best_by(config: Config, project: Project) -> Iterator[Mistake]:
    if config.checkpoint.best_by == AUTO:
        return  # a gate's metric, which is checked with the gates
    try:
        check_best_by(config, project)
    except ConfigError as error:
        yield Mistake(_where(config, "checkpoint.best_by"), error.what, error.why, error.hint)


def _gates(config: Config, project: Project) -> Iterator[Mistake]:
    known = declared_metrics(config, project)
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


def declared_metrics(config: Config, project: Project) -> Sequence[str]:
    """The metrics that `aifx eval` will report; empty if the task does not declare them."""
    kind = config.task.kind
    if kind not in BUNDLED_METRICS:
        return tuple(getattr(import_task(kind, project), "metric_names", ()))
    names = BUNDLED_METRICS[kind]
    if isinstance(config.data, VisionDataSection):
        names += tuple(f"per_class.{name}.{metric}" for name in config.data.classes for metric in PER_CLASS_METRICS)
    return names


def _is_class_metric(name: str, config: Config) -> bool:
    """Whether `name` is the metric of a class that only the data names: its number."""
    pattern = rf"per_class\.\d+\.({'|'.join(PER_CLASS_METRICS)})"
    is_numbered = isinstance(config.data, VisionDataSection) and not config.data.classes
    return is_numbered and re.fullmatch(pattern, name) is not None


def _files(config: Config, project: Project) -> Iterator[Mistake]:
    if isinstance(config.data, LanguageDataSection):
        from aifx.data.files import find_files

        for key in ("train", "validation", "test"):
            try:
                find_files(getattr(config.data, key), project, f"data.{key}")
            except DataError as error:
                yield Mistake(_where(config, f"data.{key}"), error.what, error.why, error.hint)
        if config.data.tokenizer != "bpe":
            yield from _file(config, project, "data.tokenizer", config.data.tokenizer)
    elif isinstance(config.data, VisionDataSection):
        yield from _file(config, project, "data.path", config.data.path)


def _file(config: Config, project: Project, key: str, name: str) -> Iterator[Mistake]:
    path = project.root / name
    if path.is_file():
        return
    problem = f"{key} = {name!r} is not a file" if path.exists() else f"no file {name!r}, which {key} names"
    yield Mistake(_where(config, key), problem, _beside(path), f"ls {path.parent}")


def _beside(path: Path) -> str:
    """Files of the same kind in the folder of a file that is missing."""
    found = sorted(p.name for p in path.parent.glob(f"*{glob.escape(path.suffix)}") if p.is_file())[:3]
    return f"in {path.parent} there is {', '.join(found)}" if found else f"looked in {path.parent}"


def _where(config: Config, key: str) -> str:
    where = config.origin(key).where
    return "" if where == "default" else where
