"""Two runs side by side: settings, validation, smoothed losses, evaluations."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

from aifx.core.json_files import read_jsonl
from aifx.core.json_values import number
from aifx.core.project import RunDirectory
from aifx.core.results import Result
from aifx.runs.reading import read_evaluations
from aifx.runs.status import RunStatus, read_settings, run_status, validation_loss

SMOOTHING_FRACTION = 0.05
"""Steps that a smoothed loss averages, as a fraction of those that both runs have done."""

MAX_ROWS = 12
MAX_ROWS_OF_THE_LONGER = 3

Pair: TypeAlias = tuple[float | None, float | None]
"""A value of the first run and of the second; None where a run has none."""


@dataclass(frozen=True)
class SettingPair:
    """A setting whose values differ."""

    key: str  # "train.seed"
    values: tuple[Any, Any]


@dataclass(frozen=True)
class MetricPair:
    """A metric of each run's last evaluation of a split."""

    split: str
    metric: str
    values: Pair


@dataclass(frozen=True)
class StepRow:
    """Two runs after the same number of steps."""

    step: int
    loss: Pair
    smoothed_loss: Pair
    validation_loss: Pair


@dataclass(frozen=True)
class Comparison(Result):
    """Two runs side by side: what `aifx runs compare --json` prints.

    Attributes:
        config: settings whose values differ.
        steps: the last step of each run that has a record.
        common_steps: the last step that both have done.
        smoothing_steps: how many steps up to the one named a smoothed loss averages.
        smoothed_loss: at `common_steps`.
        last_validation: the metrics of the last validation of each run.
        best_validation_loss, best_step: the lowest validation loss, and where it was reached.
        best_common_validation_loss: the lowest validation loss within `common_steps`.
        rows: losses along the way; behind `common_steps` of the longer run alone.
    """

    runs: tuple[RunStatus, RunStatus]
    config: list[SettingPair]
    steps: tuple[int, int]
    common_steps: int
    smoothing_steps: int
    smoothed_loss: Pair
    last_validation: dict[str, Pair]
    best_validation_loss: Pair
    best_step: tuple[int | None, int | None]
    best_common_validation_loss: Pair
    rows: list[StepRow]
    evaluations: list[MetricPair]


class _Curve:
    """The records of one run by step."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.by_step = {r["step"]: r for r in records if isinstance(r.get("step"), int)}
        losses = {s: loss for s, r in sorted(self.by_step.items()) if (loss := number(r.get("loss"))) is not None}
        self._steps, self._losses = list(losses), list(losses.values())
        self.validated = {s: v for s, r in sorted(self.by_step.items()) if (v := validation_loss(r)) is not None}
        self.last = max(self.by_step, default=0)

    def loss(self, step: int) -> float | None:
        return number(self.by_step[step].get("loss")) if step in self.by_step else None

    def smoothed(self, step: int, window: int) -> float | None:
        """The mean of the losses recorded within the last `window` steps up to `step`."""
        if step > self.last:
            return None
        first, end = bisect_right(self._steps, step - window), bisect_right(self._steps, step)
        return fmean(self._losses[first:end]) if end > first else None

    def best(self, until: int) -> tuple[float, int] | tuple[None, None]:
        """The lowest validation loss up to a step and where it was reached, the first of equal ones."""
        return min(((loss, step) for step, loss in self.validated.items() if step <= until), default=(None, None))

    def last_validation(self) -> dict[str, float]:
        """The metrics of the last validation; reports nested in it (those of classes) are left out."""
        metrics = self.by_step[max(self.validated)]["validation"] if self.validated else {}
        return {name: value for name, v in metrics.items() if (value := number(v)) is not None}


def compare_runs(first: RunDirectory, second: RunDirectory) -> Comparison:
    """Compare two runs, of any lengths."""
    settings = _pairs(read_settings(first), read_settings(second))
    a, b = (_Curve(read_jsonl(run.metrics)) for run in (first, second))
    common = min(a.last, b.last)
    window = max(1, round(common * SMOOTHING_FRACTION))
    best_a, best_b = a.best(a.last), b.best(b.last)
    return Comparison(
        runs=(run_status(first), run_status(second)),
        config=[SettingPair(key, values) for key, values in settings.items() if values[0] != values[1]],
        steps=(a.last, b.last),
        common_steps=common,
        smoothing_steps=window,
        smoothed_loss=(a.smoothed(common, window), b.smoothed(common, window)),
        last_validation=_pairs(a.last_validation(), b.last_validation()),
        best_validation_loss=(best_a[0], best_b[0]),
        best_step=(best_a[1], best_b[1]),
        best_common_validation_loss=(a.best(common)[0], b.best(common)[0]),
        rows=[_row(step, a, b, window) for step in _rows(a, b, common)],
        evaluations=_evaluations(first, second),
    )


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The two values of each key that either has."""
    return {key: (first.get(key), second.get(key)) for key in dict.fromkeys([*first, *second])}


def _row(step: int, a: _Curve, b: _Curve, window: int) -> StepRow:
    return StepRow(
        step,
        (a.loss(step), b.loss(step)),
        (a.smoothed(step, window), b.smoothed(step, window)),
        (a.validated.get(step), b.validated.get(step)),
    )


def _rows(a: _Curve, b: _Curve, common: int) -> list[int]:
    """Steps to show: up to `common` those that both validated, or else that either has; then some of the longer run."""
    if not common:
        return []
    shared = sorted(s for s in a.by_step.keys() & b.by_step.keys() if s <= common)
    validated = [s for s in shared if s in a.validated and s in b.validated]
    either = sorted({s for curve in (a, b) for s in curve.by_step if s <= common})
    steps = validated if len(validated) >= min(4, len(shared)) and validated else shared or either
    longer = a if a.last > b.last else b
    beyond = [s for s in longer.by_step if s > common]
    behind = sorted(s for s in beyond if s in longer.validated) or sorted(beyond)
    return _spread(steps, MAX_ROWS) + _spread(behind, MAX_ROWS_OF_THE_LONGER)


def _evaluations(first: RunDirectory, second: RunDirectory) -> list[MetricPair]:
    """The metrics of each run's last evaluation of a split that either was evaluated on."""
    sides = [{e.split: e.metrics for e in read_evaluations(run)} for run in (first, second)]
    rows = []
    for split in sorted({*sides[0], *sides[1]}):
        for metric, values in _pairs(*(side.get(split, {}) for side in sides)).items():
            pair = number(values[0]), number(values[1])
            if pair != (None, None):
                rows.append(MetricPair(split, metric, pair))
    return rows


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the items, spread evenly, the last one always among them."""
    if len(items) <= count:
        return list(items)
    return [items[(i + 1) * len(items) // count - 1] for i in range(count)]
