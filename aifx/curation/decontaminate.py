"""The step that drops rows which share runs of words with the texts of a test, and the report of such rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.errors import DataError, UsageError
from aifx.curation.decisions import DECISIONS, DecidedStep, first_rows, without_dropped
from aifx.curation.overlap import RUN_WORDS, Overlap, Reference, ReferenceTexts, build_index, find_overlaps
from aifx.curation.step import Limits, Outcome
from aifx.data.versions import DATASET_NAME, SPLIT, Catalog, Version, open_catalog

if TYPE_CHECKING:
    from pyarrow import Table


@dataclass(frozen=True)
class Contamination:
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


@dataclass(frozen=True)
class Decontaminate(DecidedStep):
    """Drops the rows that share a run of 13 words with a reference."""

    references: tuple[Reference, ...]

    name = "decontaminate"
    version = 1

    @property
    def settings(self) -> Mapping[str, Any]:
        against = [[each.name, each.version.manifest.sha256, each.is_held_out] for each in self.references]
        return {"words": RUN_WORDS, "against": against}

    def prepare(self, work: Path, limits: Limits) -> Mapping[str, Any]:
        import pyarrow as pa
        from pyarrow import parquet

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
        parquet.write_table(decisions, work / DECISIONS, row_group_size=10_000)
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


def open_references(
    against: Sequence[str],
    files: Sequence[str],
    version: Version,
    catalog: Catalog,
    base: Path,
    work: Path,
    text_field: str,
    limits: Limits,
) -> tuple[Reference, ...]:
    """The texts to compare with.

    Args:
        against: data sets, and files as `aifx data add` takes them. If it is empty, the validation and test rows of
            the version itself and `files`.
        files: that hold the validation and test splits of the project.
        base: the folder to which names of files are relative.
        work: an empty folder, for the texts of files.

    Raises UsageError if there are none.
    """
    names = list(against) or list(files)
    sets = [
        name
        for name in against
        if DATASET_NAME.fullmatch(name.partition("@")[0]) and catalog.latest(name.partition("@")[0])
    ]
    references = [_of_version(catalog.open(name)) for name in sets]
    if not against and SPLIT in version.manifest.columns:
        references.append(_of_version(version))
    if paths := [name for name in names if name not in sets]:
        references += [_of_file(path, base, work / str(index), text_field, limits) for index, path in enumerate(paths)]
    if not references:
        why = "it has no column _split, and data.validation and data.test of aifx.toml name no files"
        hint = f"aifx data decontaminate {version.manifest.name} --against FILE"
        raise UsageError(f"there is nothing to compare {version.reference} with", why, hint)
    for reference in references:
        if reference.version.manifest.kind != "text":
            why = f"it holds {reference.version.manifest.kind}"
            raise UsageError(f"{reference.name} cannot be compared with", why, "--against a file or data set of texts")
    return tuple(references)


def _of_version(version: Version) -> Reference:
    return Reference(version.reference, version, SPLIT in version.manifest.columns, has_ids=True)


def _of_file(path: str, base: Path, work: Path, text_field: str, limits: Limits) -> Reference:
    """The texts of files, collected as `aifx data add` does. Raises UsageError, DataError."""
    from aifx.curation.add_plan import plan_add, run_add
    from aifx.curation.add_reports import BadRows, first_quarantined
    from aifx.curation.readers.base import ReadOptions
    from aifx.curation.source_files import list_sources

    catalog = open_catalog(str(work))
    listing = list_sources([path], base)
    if not listing.files:
        raise UsageError(
            f"{path} cannot be compared with",
            "aifx has no reader for it",
            "aifx data add --help lists what can be read",
        )
    plan = plan_add(catalog, "reference", listing, ReadOptions("text", text_field), "unknown")
    version = run_add(plan, "reference", catalog, limits).version
    if problem := BadRows.of(version.manifest).refusal(0.01, allows_damaged=False):
        bad = first_quarantined(version, 1)
        why = f"{bad[0].source}: {bad[0].reason}" if bad else problem
        raise DataError(f"--against {path} cannot be read as a test", why, "repair the file, or name another")
    return Reference(path, version, is_held_out=False, has_ids=False)
