"""Metrics by the values of a column, with intervals: where a model is worse than on the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

import numpy as np

from aifx.config.gates import Gate
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.data.base import Labels
from aifx.data.splits import Split
from aifx.evaluation.resampling import LEAST_GROUPS, ratio_interval
from aifx.evaluation.scores import Groups, groups_of, score_rows
from aifx.objectives.base import Ratio
from aifx.programs.build import Programs
from aifx.specs import Params
from aifx.tasks.base import dataset_of

MOST_SLICES = 200
MISSING = "(missing)"


class SliceMetric(TypedDict):
    """A metric of a slice. `low` and `high` are the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Slice(TypedDict):
    """The rows with one value of a column. `groups` is the number of groups by `eval.group` that they are in."""

    groups: int
    metrics: dict[str, SliceMetric]


class ColumnSlices(TypedDict):
    """The slices of a column.

    `worst` and `gap` have for each metric the worst value of a slice, and the largest difference of two. `too_few` has
    the number of groups of slices that have too few for an interval: they count in neither.
    """

    values: dict[str, Slice]
    worst: dict[str, float]
    gap: dict[str, float]
    too_few: dict[str, int]


Slices: TypeAlias = Mapping[str, ColumnSlices]


def check_slice_gates(gates: Sequence[Gate], columns: Sequence[str]) -> None:
    """Raise UsageError for a gate on slices of a column that `eval.slices` does not name."""
    for gate in gates:
        if gate.is_of_slices and not any(gate.name.startswith(f"slices.{column}.") for column in columns):
            column = gate.name.split(".")[1]
            what, hint = f"gate {gate.expr!r}: there are no slices of {column!r}", f"eval.slices = [{column!r}]"
            raise UsageError(what, did_you_mean(column, columns) if columns else "eval.slices is empty", hint)


def measure_slices(programs: Programs, params: Params, frozen: Params, split: Split) -> dict[str, ColumnSlices]:
    """The metrics of the slices of each column of `eval.slices`.

    Raises DataError for a column that is not there, and for one that has too many values.
    """
    section = programs.config.eval
    if not section.slices:
        return {}
    labels, groups = labels_of_slices(programs, split), groups_of(programs, split, section.group)
    ratios = score_rows(programs, params, frozen, split)
    return {name: _column(found.names, found.codes, groups, ratios) for name, found in labels.items()}


def labels_of_slices(programs: Programs, split: Split) -> dict[str, Labels]:
    """The values of the columns of `eval.slices`, of those that the data has. Raises as `measure_slices`."""
    form, dataset = programs.task.format, dataset_of(programs.task)
    found = {}
    for name in programs.config.eval.slices:
        labels = None if form is None else form.labels(dataset, split, name)
        if labels is not None and len(labels.names) > MOST_SLICES:
            what = f"eval.slices: column {name!r} has {len(labels.names):,} values"
            raise DataError(what, f"at most {MOST_SLICES} are slices", "add a column of categories to the data")
        if labels is not None:
            found[name] = labels
    return found


def _column(names: Sequence[str], codes: np.ndarray, groups: Groups, ratios: Mapping[str, Ratio]) -> ColumnSlices:
    values: dict[str, Slice] = {}
    too_few: dict[str, int] = {}
    for number, value in enumerate(names):
        sums = {name: groups.sums(ratio, codes == number) for name, ratio in ratios.items()}
        counted = {name: of[of[:, 1] > 0] for name, of in sums.items()}
        count = max(map(len, counted.values()))
        if min(map(len, counted.values())) < LEAST_GROUPS:
            if count:
                too_few[value or MISSING] = count
            continue
        found = {name: ratio_interval(of[:, 0], of[:, 1]) for name, of in counted.items()}
        metrics: dict[str, SliceMetric] = {
            name: {"value": one.value, "low": one.low, "high": one.high} for name, one in found.items()
        }
        values[value or MISSING] = {"groups": count, "metrics": metrics}
    worst, gap = {}, {}
    for name, ratio in ratios.items():
        if by_value := [of["metrics"][name]["value"] for of in values.values()]:
            worst[name] = (max if ratio.direction == "min" else min)(by_value)
            gap[name] = max(by_value) - min(by_value)
    return {"values": values, "worst": worst, "gap": gap, "too_few": too_few}
