"""Held-out metrics during training: when to measure it, which one was best, when there is no more to gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from aifx.config.best_by import LOSS, BestBy
from aifx.data.base import Batch
from aifx.evaluation.held_out import evaluate_split
from aifx.programs.build import Programs
from aifx.specs import Params


@dataclass(frozen=True)
class Progress:
    """How validation went so far; part of each checkpoint, so that early stopping survives a stop."""

    best_loss: float | None = None  # at the best step
    best_step: int | None = None
    since_best: int = 0  # validations without improvement
    last_loss: float | None = None
    best_value: float | None = None  # of the metric that ranks checkpoints

    def after(self, step: int, metrics: Mapping[str, Any], best_by: BestBy) -> Progress:
        """After a validation at `step`."""
        loss, value = LOSS.value(metrics), best_by.value(metrics)
        if value is not None and (self.best_value is None or best_by.is_better(value, self.best_value)):
            return Progress(loss, step, 0, loss, value)
        return replace(self, since_best=self.since_best + 1, last_loss=loss)

    def is_exhausted(self, patience: int) -> bool:
        """Whether `train.early_stopping` validations went by without improvement; 0 never is."""
        return 0 < patience <= self.since_best

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Progress:
        return cls(**document)


class Interrupted(Exception):
    """Validation gave way to a signal; the state is as it was."""


class Validator:
    """Measures the validation split."""

    def __init__(self, programs: Programs, interrupted: Callable[[], bool]) -> None:
        self._programs = programs
        self._interrupted = interrupted

    def __call__(self, params: Params, frozen: Params) -> dict[str, Any]:
        """Metrics of `params`. Raises Interrupted if a stop is requested meanwhile."""
        num_batches = self._programs.config.train.validation_batches or None
        return evaluate_split(self._programs, params, frozen, "validation", num_batches=num_batches, place=self._place)

    def _place(self, batch: Batch) -> Mapping[str, jax.Array]:
        if self._interrupted():
            raise Interrupted
        return self._programs.layout.place(batch)
