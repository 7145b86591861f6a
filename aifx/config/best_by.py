"""The metric that ranks the checkpoints of a run, and in which direction: `checkpoint.best_by`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, TypeAlias

from aifx.config.config import Config
from aifx.config.gates import Gate, parse_gate, scalars
from aifx.core.errors import ConfigError, UsageError, did_you_mean

Direction: TypeAlias = Literal["min", "max"]

AUTO = "auto"


@dataclass(frozen=True)
class BestBy:
    """A validation metric, a nested one by its path (`per_class.Shirt.recall`), and whether more or less is better."""

    metric: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.direction} {self.metric}"

    def value(self, metrics: Mapping[str, Any]) -> float | None:
        """The metric among those of a validation; None if it is not there or not finite."""
        value = scalars(metrics).get(self.metric)
        return value if value is not None and math.isfinite(value) else None

    def score(self, values: Sequence[float]) -> Score:
        """The score of the last checkpoint among validated ones with these values."""
        return Score(self.metric, self.direction, fmean(values))

    def is_better(self, value: float, than: float) -> bool:
        return value > than if self.direction == "max" else value < than


LOSS = BestBy("loss", "min")


@dataclass(frozen=True)
class Score:
    """The value that ranks a checkpoint among those of its run."""

    metric: str
    direction: Direction
    value: float

    @property
    def cost(self) -> float:
        """Less is better."""
        return -self.value if self.direction == "max" else self.value


def score_of(best_by: BestBy, metrics: Mapping[str, Any] | None, before: Sequence[float] = ()) -> Score | None:
    """The score of a checkpoint with these validation metrics; None if it was not validated.

    It is the mean of the metric and of those `before`, of earlier validations.
    """
    value = None if metrics is None else best_by.value(metrics)
    return None if value is None else best_by.score([*before, value])


def parse_best_by(text: str, option: str | None = None) -> BestBy:
    """Parse `min METRIC` or `max METRIC`, by default of `checkpoint.best_by`. Raises UsageError for anything else."""
    direction, _, metric = text.strip().partition(" ")
    if direction not in ("min", "max") or not metric.strip():
        forms = "'min METRIC' or 'max METRIC'"
        if option is not None:
            raise UsageError(f"{option} {text!r} cannot be used", f"expected {forms}", f'{option} "max accuracy"')
        what, hint = f"checkpoint.best_by = {text!r} cannot be used", 'best_by = "max accuracy"    (below [checkpoint])'
        raise UsageError(what, f"expected {AUTO!r}, {forms}", hint)
    return BestBy(metric.strip(), "min" if direction == "min" else "max")


def best_by_of(config: Config) -> BestBy:
    """The metric that ranks the checkpoints of a run with this configuration, and its direction."""
    if config.checkpoint.best_by != AUTO:
        return parse_best_by(config.checkpoint.best_by)
    return first_of(parse_gate(expr) for expr in config.eval.gates) or LOSS


def first_of(gates: Iterable[Gate]) -> BestBy | None:
    """The metric and direction of the first gate that has a direction."""
    for gate in gates:
        if gate.op != "==" and not gate.is_of_slices:
            return BestBy(gate.name, "max" if gate.op.startswith(">") else "min")
    return None


def check_metric(best_by: BestBy, known: Iterable[str]) -> None:
    """Check that validation reports the metric. Raises ConfigError if it does not."""
    names = list(known)
    if best_by.metric not in names:
        near = did_you_mean(best_by.metric, [n for n in names if "." not in n or "." in best_by.metric])
        what = f"checkpoint.best_by = {str(best_by)!r}: there is no metric {best_by.metric!r}"
        raise ConfigError(what, near, 'aifx train --set checkpoint.best_by="min loss"')


def with_best_by(config: Config, best_by: str | None = None) -> Config:
    """The configuration with `checkpoint.best_by` fixed, so that gates which change later do not change it.

    `best_by` is what the run was started with; None if it starts now.
    """
    if config.checkpoint.best_by != AUTO:
        return config
    origin = config.origin("eval.gates" if config.eval.gates else "checkpoint.best_by")
    section = config.checkpoint.model_copy(update={"best_by": best_by or str(best_by_of(config))})
    return dataclasses.replace(config, checkpoint=section, origins={**config.origins, "checkpoint.best_by": origin})
