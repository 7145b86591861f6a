"""What the validations of a run have found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aifx.config import Config
from aifx.config.best_by import LOSS, BestBy, best_by_of, mean_of, score_of

WARN_AFTER = 4
"""Validations in a row without improvement."""


@dataclass(frozen=True)
class Progress:
    """How validation went so far; part of each checkpoint, so that early stopping survives a stop."""

    best_loss: float | None = None  # at the best step
    best_step: int | None = None
    since_best: int = 0  # validations without improvement
    last_loss: float | None = None
    best_value: float | None = None  # of the metric that ranks checkpoints, the mean over `best_over` validations
    best_over: int | None = None  # at most `checkpoint.best_over`: the first ones have fewer before them
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by class, that the last validation chose
    recent: Sequence[float] = field(default_factory=list)  # the metric at the last `checkpoint.best_over` validations

    def after(self, step: int, metrics: Mapping[str, Any], best_by: BestBy, best_over: int = 1) -> Progress:
        """After a validation at `step`."""
        loss, value = LOSS.value(metrics), best_by.value(metrics)
        recent = self.recent if value is None else [*self.recent, value][-best_over:]
        score = score_of(best_by, metrics, recent[:-1])
        if score is not None and (self.best_value is None or best_by.is_better(score.value, self.best_value)):
            return Progress(loss, step, 0, loss, score.value, len(recent), recent=recent)
        return replace(self, since_best=self.since_best + 1, last_loss=loss, recent=recent)

    def warning(self, config: Config, before: Progress) -> str | None:
        """What to warn of after this validation, if anything. `before` is the progress until then.

        aifx warns of the first loss in a row that is not finite, and once in a row of WARN_AFTER without improvement.
        """
        is_first = before.last_loss is not None or before.since_best == 0
        if self.last_loss is None and is_first:
            return "the loss of the validation is not finite: look for NaN in the data of the validation split"
        patience = config.train.early_stopping
        if self.since_best != WARN_AFTER or self.best_value is None or 0 < patience <= WARN_AFTER:
            return None
        best = f"the best is {self.best_value:.4f}, of step {self.best_step}{mean_of(self.best_over)}"
        text = f"{WARN_AFTER} validations in a row without a better {best_by_of(config).metric}: {best}"
        return text if patience else f"{text}; train.early_stopping would end such a run"
