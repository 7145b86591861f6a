"""The step that drops rows which share runs of words with the texts of a test, and the report of such rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.errors import ExitCode
from aifx.core.results import Result
from aifx.curation.decisions import DecidedStep, first_rows, without_dropped, write_decisions
from aifx.curation.overlap import RUN_WORDS, Overlap, Reference, ReferenceTexts, build_index, find_overlaps
from aifx.curation.step import Limits, Outcome
from aifx.data.versions.manifest import Version
from aifx.data.versions.verification import check_shards

if TYPE_CHECKING:
    from pyarrow import Table


@dataclass(frozen=True)
class Contamination(Result):
    """The document of `aifx data decontaminate --json` without --drop.

    Attributes:
        rows: that were compared.
        overlapping: rows that share a run of 13 words with a reference.
        by_reference: the same by the reference with the row's longest fragment.
        overlaps: the first of them.
    """

    reference: str
    rows: int
    against: tuple[ReferenceTexts, ...]
    overlapping: int
    by_reference: Mapping[str, int]
    overlaps: tuple[Overlap, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.overlapping else ExitCode.OK


@dataclass(frozen=True)
class Decontaminate(DecidedStep):
    """Drops the rows that share a run of 13 words with a reference."""

    references: tuple[Reference, ...]

    name = "decontaminate"

    @property
    def settings(self) -> Mapping[str, Any]:
        against = [[each.name, each.digest, each.is_held_out] for each in self.references]
        return {"words": RUN_WORDS, "against": against}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        import pyarrow as pa

        version = self.parents[0]
        against = build_index(self.references, work, limits)
        first = first_rows(version.manifest.shards)
        rows: dict[int, Overlap] = {}
        for shard, found in find_overlaps(version, work, limits, skip_held_out=self._is_own):
            rows.update({int(first[shard]) + place: overlap for place, overlap in found})
        numbers = sorted(rows)
        decisions = pa.table(
            {
                "row": pa.array(numbers, pa.int64()),
                "rule": pa.array([f"overlaps {rows[number].reference}" for number in numbers], pa.string()),
                "twin": pa.array([rows[number].twin for number in numbers], pa.string()),
            }
        )
        write_decisions(work, decisions)
        return {
            "reference_texts": sum(each.texts for each in against),
            "too_short": sum(each.too_short for each in against),
        }

    @property
    def _is_own(self) -> bool:
        return compares_with_itself(self.parents[0], self.references)

    def apply(self, rows: Table, decisions: Table) -> Outcome:
        return without_dropped(rows, decisions, twin="twin")


def compares_with_itself(version: Version, references: Sequence[Reference]) -> bool:
    """Whether a reference holds the validation and test rows of the version, which are then not compared."""
    return any(each.is_held_out and each.version.manifest.sha256 == version.manifest.sha256 for each in references)


def find_contamination(
    version: Version, references: Sequence[Reference], work: Path, limits: Limits, most: int
) -> Contamination:
    """Compare the rows of a version with references, and report `most` of those that overlap."""
    check_shards(version)
    against = build_index(references, work, limits)
    counts: Counter[str] = Counter()
    by_shard: dict[int, list[Overlap]] = {}
    skip = compares_with_itself(version, references)
    for shard, found in find_overlaps(version, work, limits, skip_held_out=skip):
        counts.update(overlap.reference for _, overlap in found)
        by_shard[shard] = [overlap for _, overlap in found[:most]]
    overlaps = [overlap for shard in sorted(by_shard) for overlap in by_shard[shard]]
    return Contamination(
        version.reference,
        version.manifest.rows,
        against,
        counts.total(),
        dict(sorted(counts.items())),
        tuple(overlaps[:most]),
    )
