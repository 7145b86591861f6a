"""What no single key can know: settings that do not go together."""

from __future__ import annotations

from collections.abc import Iterator

from aifx.config.best_by import AUTO, parse_best_by
from aifx.config.config import Config
from aifx.config.diagnostics import Mistake, refuse
from aifx.config.gates import parse_gate
from aifx.config.sections import Conflict
from aifx.core.errors import UsageError


def check_conflicts(config: Config, changed: set[str] | None = None) -> None:
    """Raise ConfigError for settings that cannot be used together, with the place of the one that was set last.

    Conflicts of none of the `changed` keys are not reported.
    """
    mistakes = []
    for conflict in _conflicts(config):
        if changed is None or changed.intersection(conflict.keys):
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
    data, devices = config.mesh.data, config.train.devices
    if data != -1 and devices not in ("all", data):
        yield Conflict(
            ("mesh.data", "train.devices"),
            f"mesh.data = {data} is not train.devices = {devices}",
            "every device has a place in the mesh, and its only axis is data",
        )
    for _, section in config.sections():
        yield from section.conflicts(config)


def _train(config: Config) -> Iterator[Conflict]:
    train, schedule = config.train, config.schedule
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
    # A run cut short for a trial (`--set train.num_steps=20`) may end within its warm-up; a file may not ask for it.
    if schedule.warmup_steps > train.num_steps and config.precedence("schedule.warmup_steps") >= config.precedence(
        "train.num_steps"
    ):
        yield Conflict(
            ("schedule.warmup_steps", "train.num_steps"),
            f"schedule.warmup_steps = {schedule.warmup_steps} is more than train.num_steps = {train.num_steps}",
            "the run would end before its warm-up does",
        )
