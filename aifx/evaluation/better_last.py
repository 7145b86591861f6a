"""Whether the last checkpoint of a run beats its best one by the metric of a gate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aifx.checkpoint.listing import list_checkpoints
from aifx.config.best_by import BestBy, first_of
from aifx.config.gates import Gate
from aifx.core.json_files import read_jsonl
from aifx.core.project import RunDirectory


@dataclass(frozen=True)
class BetterLast:
    """Validation metrics of the two checkpoints, by the metric of the first gate."""

    best_by: str  # "max accuracy"
    last_step: int
    last_value: float
    best_step: int
    best_value: float


def better_last(run: RunDirectory, gates: Iterable[Gate]) -> BetterLast | None:
    """The two checkpoints if the last one is better; None if it is not, or was not validated."""
    best_by = first_of(gates)
    checkpoints = [c for c in list_checkpoints(run.checkpoints) if c.score is not None]
    best = next((c.step for c in checkpoints if c.is_best), None)
    if best_by is None or best is None or (last := checkpoints[-1].step) == best:
        return None
    values = _validations(run, best_by, {last, best})
    if last not in values or best not in values or not best_by.is_better(values[last], values[best]):
        return None
    return BetterLast(str(best_by), last, values[last], best, values[best])


def _validations(run: RunDirectory, best_by: BestBy, steps: set[int]) -> dict[int, float]:
    """The metric at these steps, as the run's validations measured it."""
    found: dict[int, float] = {}
    for record in read_jsonl(run.metrics):
        if record.get("step") in steps and isinstance(validation := record.get("validation"), dict):
            value = best_by.value(validation)
            if value is not None:
                found[record["step"]] = value
    return found
