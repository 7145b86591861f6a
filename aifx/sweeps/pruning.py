"""The median rule: a trial that is worse than half of the others at the same step is not worth its time.

Golovin et al. 2017, "Google Vizier: A Service for Black-Box Optimization"; Optuna's MedianPruner.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from aifx.config.best_by import BestBy

Curve: TypeAlias = Sequence[tuple[int, float]]
"""Step and value of each validation, in order."""

LEAST_OTHERS = 5
"""Other trials that must have reached a step: Optuna's `n_startup_trials`."""

WARMUP_FRACTION = 0.25
"""Of a trial's steps, in which it is not judged: its learning rate may still rise."""


@dataclass(frozen=True)
class Pruning:
    """Why a trial is pruned: its best value up to `step` is worse than the median of the others'."""

    step: int
    value: float
    median: float


def judge(curve: Curve, others: Iterable[Curve], best_by: BestBy, num_steps: int) -> Pruning | None:
    """Why a trial should be pruned at one of its validations, the earliest; None if it should go on.

    Args:
        curve: the trial's own.
        others: those of all other trials, whether they go on or have ended.
        num_steps: of the trial.
    """
    rivals = [other for other in others if other]
    for step, _ in curve:
        if not WARMUP_FRACTION * num_steps <= step < num_steps:
            continue
        reached = [best_until(other, step, best_by) for other in rivals if other[-1][0] >= step]
        values = [value for value in reached if value is not None]
        own = best_until(curve, step, best_by)
        if len(values) >= LEAST_OTHERS and own is not None:
            median = statistics.median(values)
            if best_by.is_better(median, own):
                return Pruning(step, own, median)
    return None


def best_until(curve: Curve, step: int, best_by: BestBy) -> float | None:
    """The best value of the validations up to a step; None if there is none."""
    values = [value for at, value in curve if at <= step]
    return (max(values) if best_by.direction == "max" else min(values)) if values else None
