"""Labels of several labellers: the label of each row, the step that applies it, and how far they agree.

Agreement is Krippendorff's alpha: Klaus Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011),
https://repository.upenn.edu/asc_papers/43.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from pathlib import Path
from statistics import multimode
from typing import Any

import pyarrow as pa
from pyarrow import Table

from aifx.core.digests import sha256_of
from aifx.core.errors import ExitCode, UsageError
from aifx.core.json_values import encode_json
from aifx.core.results import Result
from aifx.curation.labels.store import STEP
from aifx.curation.step import Outcome, ShardStep, set_column
from aifx.data.names import ROW
from aifx.data.versions.manifest import TEXT_TYPES, Version
from aifx.data.versions.shards import read_shard


def decide(labels: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The label that more labellers gave to a row than any other, by row. A row without one is left out.

    Args:
        labels: label by labeller, by row.
    """
    return {row: found[0] for row, of_row in labels.items() if len(found := multimode(of_row.values())) == 1}


def check_labels(version: Version, column: str, labels: Mapping[str, str]) -> None:
    """Raise UsageError if there are no labels, or if the column holds other values than texts."""
    name = version.manifest.name
    if not labels:
        hint = f"aifx data label serve {name} --labels yes,no, or aifx data label import {name} FILE"
        hint = hint if column == "label" else f"{hint}, with --column {column}"
        raise UsageError(f"column {column} of {name} has no labels to apply", "nobody has labelled a row yet", hint)
    kind = version.manifest.columns.get(column, "string")
    if kind not in (*TEXT_TYPES, "null"):
        why = f"{version.reference} holds {kind} in it, and labels are texts"
        raise UsageError(f"labels cannot be applied to column {column}", why, "aifx data label import --column NAME")


@dataclass(frozen=True)
class ApplyLabels(ShardStep):
    """Sets the column of labelled rows. Other rows keep their value, or get null.

    Attributes:
        labels: by row.
    """

    column: str
    labels: Mapping[str, str]

    name = STEP
    fills_columns = True

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"column": self.column, "labels": self._digest}

    @cached_property
    def _digest(self) -> str:
        return sha256_of(encode_json(sorted(self.labels.items())))

    def task_inputs(self, task: int, work: Path) -> Any:
        """The labels of its own rows; those of others change nothing."""
        ids = read_shard(self.parents[0].shards[task], [ROW])[ROW].to_pylist()
        shard = self.parents[0].manifest.shards[task].sha256
        return [self.kind, shard, self.column, {row: self.labels[row] for row in ids if row in self.labels}]

    @property
    def added_columns(self) -> Mapping[str, str]:
        return {self.column: "string"}

    def apply(self, rows: Table, work: Path) -> Outcome:
        before = rows[self.column].to_pylist() if self.column in rows.column_names else [None] * len(rows)
        values = [self.labels.get(row, value) for row, value in zip(rows[ROW].to_pylist(), before, strict=True)]
        kept = set_column(rows, self.column, pa.array(values, pa.string()))
        changed = sum(value != old for value, old in zip(values, before, strict=True))
        return Outcome(kept, None, {"rows_labelled": len(values) - values.count(None), "rows_changed": changed})


@dataclass(frozen=True)
class LabellerPair:
    """Two labellers, and the share of the rows that both labelled on which their labels are the same."""

    labellers: tuple[str, str]
    rows: int
    same: float


@dataclass(frozen=True)
class Disagreement:
    """A row with different labels, and who gave each."""

    row: str
    labels: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Agreement(Result):
    """The document of `aifx data label agreement --json`.

    Attributes:
        alpha: Krippendorff's alpha for names without an order: 1 for perfect agreement, 0 for what chance would
            give. None if no row has two labels, or all labels are the same.
        rows: that have a label.
        shared: rows that have labels of two labellers or more; only these count.
        labels: number of labels of all rows, by labeller.
        different: rows of `shared` whose labels differ.
        min_agreement: the bound of alpha; None if there is none.
        accepted: whether alpha is known and at least the bound.
    """

    reference: str
    column: str
    alpha: float | None
    rows: int
    shared: int
    labels: Mapping[str, int]
    pairs: tuple[LabellerPair, ...]
    different: int
    disagreements: tuple[Disagreement, ...]
    min_agreement: float | None
    accepted: bool

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.OK if self.accepted else ExitCode.VERDICT


MOST_DISAGREEMENTS = 1000


def agreement_of(
    reference: str, column: str, labels: Mapping[str, Mapping[str, str]], min_agreement: float | None
) -> Agreement:
    """The agreement of label by labeller, by row."""
    shared = {row: of_row for row, of_row in labels.items() if len(of_row) > 1}
    different = {row: of_row for row, of_row in shared.items() if len(set(of_row.values())) > 1}
    counts = Counter(labeller for of_row in labels.values() for labeller in of_row)
    pairs: dict[tuple[str, str], list[bool]] = {}
    for of_row in labels.values():
        for one, two in combinations(sorted(of_row), 2):
            pairs.setdefault((one, two), []).append(of_row[one] == of_row[two])
    alpha = krippendorff_alpha([list(of_row.values()) for of_row in shared.values()])
    first = islice(different.items(), MOST_DISAGREEMENTS)
    return Agreement(
        reference=reference,
        column=column,
        alpha=alpha,
        rows=len(labels),
        shared=len(shared),
        labels=dict(sorted(counts.items())),
        pairs=tuple(LabellerPair(two, len(same), sum(same) / len(same)) for two, same in sorted(pairs.items())),
        different=len(different),
        disagreements=tuple(Disagreement(row, by_label(of_row)) for row, of_row in first),
        min_agreement=min_agreement,
        accepted=min_agreement is None or (alpha is not None and alpha >= min_agreement),
    )


def by_label(of_row: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The labellers of each label of a row, the most frequent label first."""
    found = [(label, tuple(sorted(who for who in of_row if of_row[who] == label))) for label in set(of_row.values())]
    return dict(sorted(found, key=lambda item: (-len(item[1]), item[0])))


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for labels without an order (nominal data).

    Args:
        units: the labels of each row, in any order; missing ones are left out.

    None if it is not defined: no row has two labels, or all labels are the same.
    """
    counts = [Counter(unit) for unit in units if len(unit) > 1]
    totals = sum(counts, Counter[str]())
    total = totals.total()
    if len(totals) < 2:
        return None
    # Each ordered pair of labels within a row of m labels weighs 1 / (m - 1), so that a row weighs m in all.
    same = sum(sum(n * (n - 1) for n in unit.values()) / (unit.total() - 1) for unit in counts)
    same_by_chance = sum(n * (n - 1) for n in totals.values()) / (total - 1)
    return 1 - (total - same) / (total - same_by_chance)
