"""Checks of several keys: settings that do not go together."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Literal

from aifx.config.best_by import AUTO, parse_best_by
from aifx.config.config import Config
from aifx.config.diagnostics import Mistake, refuse
from aifx.config.gates import parse_gate
from aifx.config.sections import Conflict, MeshSection, ScheduleSection
from aifx.core.errors import UsageError
from aifx.core.plurals import counted

logger = logging.getLogger(__name__)


def check_conflicts(config: Config, changed: set[str] | None = None) -> None:
    """Raise ConfigError for settings that cannot be used together, with the place of the one that was set last.

    Conflicts of none of the `changed` keys are not reported.
    """
    found = _conflicts(config)
    refuse_conflicts(config, (c for c in found if changed is None or changed.intersection(c.keys)))


def warn_of_warmup(schedule: ScheduleSection, num_steps: int) -> None:
    """Log a warning if a run of `num_steps` is too short for its warm-up."""
    asked = schedule.warmup_steps
    if (warmup := schedule.warmup_of(num_steps)) < asked:
        logger.warning(
            f"schedule.warmup_steps = {asked} is too long for train.num_steps = {num_steps}: "
            f"the warm-up takes {counted(warmup, 'step')}"
        )


def refuse_conflicts(config: Config, conflicts: Iterable[Conflict]) -> None:
    """Raise ConfigError if there are any, with the place of the setting that was set last."""
    mistakes = []
    for conflict in conflicts:
        where = config.origin(max(conflict.keys, key=config.precedence)).where
        change = "change one of them" if len(conflict.keys) > 1 else f"change {conflict.keys[0]}"
        hint = f"{change}, then: aifx config check"
        mistakes.append(Mistake("" if where == "default" else where, conflict.problem, conflict.reason, hint))
    refuse(mistakes)


def _conflicts(config: Config) -> Iterator[Conflict]:
    yield from _train(config)
    for expr in config.eval.gates:
        try:
            parse_gate(expr)
        except UsageError as error:
            yield Conflict(("eval.gates",), f"eval.gates: {error.what}", error.why)
    if config.checkpoint.best_by != AUTO:
        try:
            parse_best_by(config.checkpoint.best_by)
        except UsageError as error:
            yield Conflict(("checkpoint.best_by",), error.what, error.why)
    yield from _mesh(config.mesh, config.train.devices)
    for _, section in config.sections():
        yield from section.conflicts(config)


def _mesh(mesh: MeshSection, devices: int | Literal["all"]) -> Iterator[Conflict]:
    sizes = {f"mesh.{axis}": getattr(mesh, axis) for axis in ("data", "fsdp", "tensor", "context")}
    named = [key for key, size in sizes.items() if size not in (1, -1)]
    if mesh.auto and named:
        what = f"mesh.auto = true, and {', '.join(f'{key} = {sizes[key]}' for key in named)}"
        yield Conflict(("mesh.auto", *named), what, "mesh.auto finds the sizes")
    given = math.prod(size for size in sizes.values() if size != -1)
    if devices == "all" or -1 in sizes.values() or given % devices == 0:  # there may be several processes
        return
    named = named or ["mesh.data"]
    yield Conflict(
        (*named, "train.devices"),
        f"{' x '.join(f'{key} = {sizes[key]}' for key in named)} does not make up train.devices = {devices}",
        "the sizes of the mesh make up the number of devices of all processes, and one of them may be -1",
    )


def _train(config: Config) -> Iterator[Conflict]:
    train = config.train
    if train.global_batch_size % train.gradient_accumulation:
        yield Conflict(
            ("train.gradient_accumulation", "train.global_batch_size"),
            f"train.global_batch_size = {train.global_batch_size} is not divisible by "
            f"train.gradient_accumulation = {train.gradient_accumulation}",
            "each micro-batch has the same number of rows",
        )
    if train.early_stopping and not train.validate_every:
        yield Conflict(
            ("train.early_stopping", "train.validate_every"),
            f"train.early_stopping = {train.early_stopping} needs validations, and train.validate_every = 0 makes none",
            "early stopping counts validations without improvement",
        )
    if train.folds > 1 and not config.data.can_train_on_validation:
        yield Conflict(
            ("train.folds", "task.kind"),
            f'train.folds = {train.folds} cannot be used with task.kind = "{config.task.kind}"',
            "folds are for tables; train.folds = 1 trains one model",
        )
    if train.folds > 1 and config.finetune.base is not None:
        yield Conflict(
            ("train.folds", "finetune.base"),
            f"train.folds = {train.folds} and finetune.base cannot be used together",
            "each member begins with weights of its own",
        )
