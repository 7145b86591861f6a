"""Metrics of groups and slices of rows: sums by row, added up where rows are alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from aifx.core.errors import DataError, UsageError
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.data.base import TEXT_BYTES
from aifx.data.names import ROW
from aifx.data.splits import Split
from aifx.evaluation.resampling import LEAST_GROUPS
from aifx.objectives.base import Ratio, RowSums
from aifx.parallel.joining import current_group
from aifx.programs.build import Programs
from aifx.specs import Params
from aifx.tasks.base import dataset_of, evaluation_source

Sums: TypeAlias = np.ndarray
"""Total and weight of each group, `[groups, 2]`."""


def score_rows(programs: Programs, params: Params, frozen: Params, split: Split) -> dict[str, Ratio]:
    """The metrics that are ratios of sums, by row of a split. Raises UsageError in a job of several processes."""
    if current_group().size > 1:
        why = "one process has the scores of all rows"
        raise UsageError("groups and slices of rows in a job of several processes", why, "aifx eval")
    task, parts = programs.task, list[Mapping[str, Any]]()
    source = evaluation_source(task, programs.config, split)
    count = source.num_batches or 0
    with report_progress(f"scoring the rows of the {split} split", count, "batches") as progress:
        for step in range(count):
            batch = source.read(step, slice(0, source.batch_size))
            placed = programs.place({name: values for name, values in batch.items() if name != TEXT_BYTES})
            found = jax.device_get(programs.score_step(params, frozen, placed))
            parts.append(jax.tree.map(lambda values: np.asarray(values)[: source.batch_size], found))
            progress.advance(1)
    sums = jax.tree.map(lambda *values: np.concatenate(values), *parts)
    return _ratios(programs, sums, split)


def _ratios(programs: Programs, sums: RowSums, split: Split) -> dict[str, Ratio]:
    task = programs.task
    sizes = {} if task.format is None else task.format.sizes(dataset_of(task), split)
    rows = len(next(iter(sums.values()))[0])
    of_targets = {name: (_padded(values, rows), np.ones(())) for name, values in sizes.items()}
    return programs.objective.ratios({**sums, **of_targets}, task.data)


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    """The values of examples, and zeros for the rows that fill the last batch."""
    return np.concatenate([values[:rows], np.zeros((rows - min(len(values), rows), *values.shape[1:]), values.dtype)])


@dataclass(frozen=True)
class Groups:
    """The group of each row of a split, or of each target: what is alike, and is drawn together.

    Attributes:
        what: a group is, for people: "document", "row", or the name of a column.
        keys: of the groups.
        codes: as those of `Labels`; None if each row is a group.
    """

    what: str
    keys: tuple[str, ...]
    codes: np.ndarray | None

    def sums(self, ratio: Ratio, which: np.ndarray | None = None) -> Sums:
        """The total and the weight of each group, of the rows `which`."""
        totals, weights = ratio.totals, np.broadcast_to(ratio.weights, np.shape(ratio.totals))
        if self.codes is None:
            both = [values.reshape(len(values), -1).astype(np.float64) for values in (totals, weights)]
            if which is not None:
                both = [values[: len(which)] * which.reshape(len(which), -1) for values in both]
            return np.stack([values.sum(axis=1) for values in both], axis=1)
        codes, shape = self.codes, self.codes.shape
        kept = codes >= 0 if which is None else (codes >= 0) & which
        parts = (np.bincount(codes[kept], values[: shape[0]][kept], len(self.keys)) for values in (totals, weights))
        return np.stack(list(parts), axis=1)


def groups_of(programs: Programs, split: Split, column: str) -> Groups:
    """The groups of a split by `eval.group`. Raises DataError for a column that is not there."""
    form, dataset = programs.task.format, dataset_of(programs.task)
    labels = None if form is None or column == ROW else form.labels(dataset, split, column or None)
    if labels is None:
        return Groups("row", (), None)
    return Groups(column or ("document" if labels.codes.ndim > 1 else "origin"), labels.names, labels.codes)


def check_groups(count: int, groups: Groups, column: str) -> None:
    """Raise DataError if there are too few groups for an interval."""
    if count >= LEAST_GROUPS:
        return
    what = f"{counted(count, 'group')} of {groups.what}, and an interval needs {LEAST_GROUPS}"
    other = f"--set eval.group={ROW} takes each row for itself, which is too sure of itself if rows are alike"
    hint = "add data, or name a finer column" if column == ROW or groups.codes is None else f"add data, or: {other}"
    raise DataError(what, "with few groups, chance decides what an interval says", hint)
