"""Checks of a configuration against what the project holds, before any work starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from aifx.config import Config, model_differences
from aifx.config.best_by import AUTO, best_by_of, check_metric
from aifx.config.diagnostics import Mistake, refuse
from aifx.config.gates import check_names, parse_gate
from aifx.config.parts import TaskParts
from aifx.config.sections import DataSection
from aifx.config.toml import literal
from aifx.core.errors import AifxError, ConfigError, UsageError
from aifx.core.project import Project, RunDirectory
from aifx.kinds import read_config
from aifx.objectives import ObjectiveKind
from aifx.parallel.checks import check_rules
from aifx.parallel.layout import abstract_layout
from aifx.parallel.mesh import AXES, COMPUTATION, PARAMETERS, parse_rules
from aifx.tasks.base import sharded_axes
from aifx.tasks.registry import describe_task


def check_project(config: Config, project: Project) -> None:
    """Raise ConfigError that lists every unknown metric and every file that is missing."""
    refuse(_mistakes(config, project))


def check_model(config: Config, base: RunDirectory, project: Project) -> None:
    """Raise ConfigError if the model computes something else with its base run's weights than it did there."""
    refuse(_other_model(config, base, project))


def check_best_by(config: Config) -> None:
    """Raise ConfigError if `checkpoint.best_by` names a metric that the task does not report."""
    best_by = best_by_of(config)
    known = declared_metrics(config.parts, config.data)
    if known and config.train.validate_every and not _is_class_metric(best_by.metric, config.parts, config.data):
        check_metric(best_by, known)


def _mistakes(config: Config, project: Project) -> Iterator[Mistake]:
    known = declared_metrics(config.parts, config.data)
    gates = [gate for gate in map(parse_gate, config.eval.gates) if not gate.is_of_slices]
    for gate in gates if known else ():
        try:
            if not _is_class_metric(gate.name, config.parts, config.data):
                check_names([gate], known)
        except UsageError as error:
            yield _mistake(config, "eval.gates", error, "change eval.gates: aifx config keys eval")
    if config.checkpoint.best_by != AUTO:  # otherwise the metric is a gate's
        try:
            check_best_by(config)
        except ConfigError as error:
            yield _mistake(config, "checkpoint.best_by", error, error.hint)
    lacks_base, step = False, config.finetune.base_step
    if config.finetune.base_run is not None:
        try:
            base = project.base_run(config.finetune.base_run)
            if step != "best" and not (base.checkpoints / str(step)).is_dir():
                what, hint = f"run {base.name} has no checkpoint of step {step}", f"aifx ckpt ls --run {base.name}"
                yield Mistake(config.origin("finetune.base").where, what, "", hint)
            yield from _other_model(config, base, project)
        except UsageError as error:
            lacks_base = True
            yield _mistake(config, "finetune.base", error, error.hint)
    if config.mesh.parameters or config.mesh.computation:
        yield from _wrong_rules(config, project)
    if config.finetune.adapter != "none" and not lacks_base:
        try:
            describe_task(config, project)
        except ConfigError as error:
            if error.what.startswith("lora.targets"):
                yield _mistake(config, "lora.targets", error, error.hint)
    for key, found in config.data.check_files(config.apply_to(project)):
        if key == "data.tokenizer" and lacks_base:
            continue  # it comes with the base run
        yield _mistake(config, key, found, found.hint)


def _other_model(config: Config, base: RunDirectory, project: Project) -> Iterator[Mistake]:
    """The keys of `[model]` that differ from those of the run `base`, as one mistake."""
    base_config = read_config(base.config, project, environ={})
    lines, remedies = [], []
    for difference in model_differences(base_config.model, config.model):
        key, own, needed = difference.key.partition(".")[2], difference.new, difference.old
        where = config.origin(difference.key).where
        place = "" if where == "default" else f"{where}: "
        here = "is not set" if own is None else f"= {literal(own)}"
        there = "does not set it" if needed is None else f"has {literal(needed)}"
        lines.append(f"{place}model.{key} {here}, and {base.title} {there}")
        remedies.append(f"remove {key}" if needed is None else f"{key} = {literal(needed)}")
    if lines:
        what = f"[model] computes something else than that of {base.title}, which finetune.base names"
        yield Mistake("", what, "\n".join(lines), f"{', '.join(remedies)}    (below [model])")


def _wrong_rules(config: Config, project: Project) -> Iterator[Mistake]:
    """Mistakes in the rules of `[mesh]` on the mesh of a run, with 2 devices along an axis of size -1.

    Rules of a model that only opened data describes are read, and compared with the model when it trains.
    """
    mistakes = []
    for key, base in ("parameters", PARAMETERS), ("computation", COMPUTATION):
        try:
            parse_rules(base, getattr(config.mesh, key), key)
        except ConfigError as error:
            mistakes.append(_mistake(config, f"mesh.{key}", error, error.hint))
    yield from mistakes
    if mistakes or config.mesh.auto:
        return
    sizes = {axis: 2 if (size := getattr(config.mesh, axis)) == -1 else size for axis in AXES}
    try:
        task = describe_task(config, project)
    except ConfigError:
        return

    def check(**others: tuple[str, ...]) -> ConfigError | None:
        mesh = config.mesh.model_copy(update={**sizes, **others})
        layout = abstract_layout(math.prod(sizes.values()), "cpu", "cpu", mesh)
        try:
            check_rules(layout, task.model.specs(), sharded_axes(task))
        except ConfigError as error:
            return error
        return None

    if (found := check()) is not None:
        key = "parameters" if check(computation=()) is not None else "computation"
        yield _mistake(config, f"mesh.{key}", found, found.hint)


def _mistake(config: Config, key: str, error: AifxError, hint: str) -> Mistake:
    where = config.origin(key).where
    return Mistake("" if where == "default" else where, error.what, error.why, hint)


def declared_metrics(parts: TaskParts, data: DataSection) -> Sequence[str]:
    """The metrics that `aifx eval` will report; empty if the task does not declare them."""
    if parts.task is not None:
        return tuple(getattr(parts.task, "metric_names", ()))
    objective = _objective(parts)
    classes: Sequence[str] = getattr(data, "classes", ())
    per_class = (f"per_class.{name}.{metric}" for name in classes for metric in objective.class_metrics)
    return (*objective.metrics, *per_class) if objective.metrics else ()


def _is_class_metric(name: str, parts: TaskParts, data: DataSection) -> bool:
    """Whether `name` is the metric of a class that only the data names."""
    if parts.task is not None or getattr(data, "classes", None):
        return False
    group, _, rest = name.partition(".")
    return group == "per_class" and rest.rpartition(".")[2] in _objective(parts).class_metrics


def _objective(parts: TaskParts) -> ObjectiveKind:
    objective = parts.kinds["objective"]
    assert isinstance(objective, ObjectiveKind)
    return objective
