"""Erasing rows: a version without them, the runs that trained on them, and on demand the versions that hold them.

The condition is written nowhere. The manifest has the number of the rows and a digest of their ids; the record by which
`aifx data add` leaves them out has their ids and digests of their contents (`erased.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from aifx.config.sections import DataSection
from aifx.core.artifact import short_reference
from aifx.core.errors import DataError, UsageError
from aifx.core.files import FolderBusy, remove_folder
from aifx.core.project import Project, cache_path
from aifx.core.results import Result
from aifx.curation.erase import Erase
from aifx.curation.erased import record_erased
from aifx.curation.execution import execute
from aifx.curation.history import TrainedRun, find_manifest, trained_runs
from aifx.curation.leftovers import delete_leftover, leftovers_in
from aifx.curation.named_files import PLACE, named_rows
from aifx.curation.step import Limits
from aifx.curation.takeover import take_over
from aifx.curation.unused import delete_version
from aifx.curation.work_folders import ROWS_FOLDER, SKETCHES, holding_dataset, steps_folder
from aifx.data.file_index import find_implicit
from aifx.data.names import ROW
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.lineage import record_removal
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import RowTable, open_selection, open_tables

CACHES = ("tokens", "chats", "tokenizers", "pages", "images", ROWS_FOLDER)
"""Folders of the cache with what was made of texts and pictures."""


@dataclass(frozen=True)
class HoldingVersion:
    """A version that has rows that are to be erased."""

    reference: str
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class Erasure(Result):
    """The findings and effects of an erasure: the document of `aifx data erase --json`.

    Attributes:
        reference: the latest version before.
        rows: number of rows to erase, of all versions of the data set.
        held_by: versions of any data set that hold some of them.
        unsearched: versions of the data set that cannot evaluate the condition. Rows that others have too are found.
        places: the file and the line or row of each of the rows, if these are in files that the configuration names.
            aifx changes no file of the user.
        runs: of the project that trained on one of these versions, or on a mix with one; for files, all that trained
            on those of the same key, whatever was in them.
        made: the version without the rows; None before it is made, or if the latest has none of them.
        purged: versions that were deleted, or that would be; for files, folders of caches.
        rewritten: versions that had files in the folders of the deleted ones, and hold them now themselves, or would.
            None of the rows to erase is in them.
        remaining: versions that hold some of the rows still.
        records: the file and line of each record of a server whose request and answer are erased, or would be.
    """

    reference: str
    rows: int
    held_by: tuple[HoldingVersion, ...]
    unsearched: tuple[str, ...]
    runs: tuple[TrainedRun, ...]
    made: str | None
    purged: tuple[str, ...]
    remaining: tuple[str, ...]
    dry_run: bool
    places: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    records: tuple[str, ...] = ()


def plan_erasure(
    catalog: Catalog,
    project: Project | None,
    reference: str,
    where: str,
    *,
    purge: bool,
    dry_run: bool,
    memory_bytes: int,
) -> tuple[Erasure, Erase]:
    """Plan an erasure of the rows that meet a condition in the latest version or in an earlier one.

    Raises UsageError for a version that is not the latest, or a condition that is empty or that the latest cannot
    evaluate.
    """
    name, version = catalog.find(reference)
    check_condition(where, name)
    if version != catalog.latest(name):
        why = "the version without the rows becomes the latest, and would miss what was done since"
        what, hint = f"{name}@{version} is not the latest version of {name}", f"aifx data erase {name} --where SQL"
        raise UsageError(what, why, hint)
    latest = catalog.open(f"{name}@{version}")
    rows: set[str] = set()
    unsearched = []
    for other in catalog.versions(name):
        try:
            rows |= {row for row, _ in _find_rows(catalog.open(f"{name}@{other}"), where, memory_bytes)}
        except (UsageError, DataError):  # it lacks a column, or is damaged
            if other == version:
                raise
            unsearched.append(f"{name}@{other}")
    step = Erase((latest,), tuple(sorted(rows)))
    held_by = _holding_versions(catalog, step.rows, memory_bytes)
    own = {whole: one for whole, one in held_by.items() if purge and whole.partition("@")[0] == name}
    purged = [one.reference for one in own.values()]
    referring = catalog.referring(name, {whole.partition("@")[2] for whole in own})
    runs = [] if project is None else [run for run in trained_runs(project) if run.reference in held_by]
    plan = _plan(latest.reference, step.rows, held_by, runs, purged, dry_run)
    rewritten = tuple(one.reference for one in referring)
    return replace(plan, unsearched=tuple(unsearched), rewritten=rewritten), step


def _plan(
    reference: str,
    rows: Sequence[str],
    held_by: Mapping[str, HoldingVersion],
    runs: Sequence[TrainedRun],
    purged: Sequence[str],
    dry_run: bool,
) -> Erasure:
    return Erasure(
        reference=reference,
        rows=len(rows),
        held_by=tuple(held_by.values()),
        unsearched=(),
        runs=tuple(replace(run, reference=short_reference(run.reference)) for run in runs),
        made=None,
        purged=tuple(purged),
        remaining=tuple(one.reference for one in held_by.values() if one.reference not in purged),
        dry_run=dry_run,
    )


def erase(catalog: Catalog, plan: Erasure, step: Erase, limits: Limits) -> Erasure:
    """Record the rows, make a version without them if the latest has any, and delete the versions to be purged.

    Raises FolderBusy, before a version is deleted, if a process works in the data set.
    """
    name = plan.reference.partition("@")[0]
    made, remaining, rewritten = None, plan.remaining, plan.rewritten
    own = [catalog.open(one.reference) for one in plan.held_by if one.reference.startswith(f"{name}@")]
    record_erased(catalog, step.rows, own, step.parents[0])  # first: after a kill, no `add` reads them again
    if any(one.reference == plan.reference for one in plan.held_by):
        made = execute(step, name, catalog, limits).version.reference
    if plan.purged:
        with holding_dataset(name, catalog, "deletes versions of it"):
            _delete_leftovers(steps_folder(name, catalog))
            shutil.rmtree(steps_folder(name, catalog) / SKETCHES, ignore_errors=True)  # digests of texts
            removed = [manifest for one in plan.purged if (manifest := find_manifest(catalog, one)) is not None]
            rewritten = tuple(take_over(catalog, name, {manifest.sha256 for manifest in removed}))
            record_removal(catalog, removed)
            for manifest in removed:
                delete_version(catalog, manifest)
            holders = _holding_versions(catalog, step.rows, limits.memory_bytes)  # also those made since the plan
        remaining = tuple(one.reference for one in holders.values())
    return replace(plan, made=made, remaining=remaining, rewritten=rewritten)


def plan_file_erasure(
    reference: str,
    section: DataSection,
    project: Project,
    catalog: Catalog,
    where: str,
    *,
    purge: bool,
    dry_run: bool,
    memory_bytes: int,
) -> Erasure:
    """Find the rows that meet a condition in the files that "data.train" or another key names.

    Args:
        catalog: of the data sets, which may have rows of these files, too.

    Raises UsageError for a condition that is empty or that the rows cannot evaluate, DataError.
    """
    check_condition(where, reference)
    version = find_implicit(reference, section, project)
    with named_rows(reference, section, project) as (key, files):
        found = _find_rows(files.open(key), where, memory_bytes, PLACE)
    rows = sorted(row for row, _ in found)
    held_by = _holding_versions(catalog, rows, memory_bytes)
    runs = [run for run in trained_runs(project) if run.reference.partition("@")[0] == version.key]
    purged = [str(folder) for folder in _caches() if purge]  # also of rows that were in the files
    plan = _plan(version.reference, rows, held_by, runs, purged, dry_run)
    return replace(plan, places=tuple(place for _, place in found))


def check_condition(where: str, reference: str) -> None:
    """Raise UsageError for an empty condition."""
    if not where.strip():
        hint = f"aifx data erase {reference} --where \"_source = 'letters.jsonl'\""
        raise UsageError("--where is empty", "it is the condition of the rows to erase", hint)


def purge_caches() -> None:
    """Delete the tokens, tokenizers and pixels of all files: they do not say whose they are, and can be made again.

    Raises FolderBusy if a process makes one of them.
    """
    for folder in _caches():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                remove_folder(path, str(path))
            else:
                path.unlink(missing_ok=True)


def _caches() -> list[Path]:
    return [folder for name in CACHES if (folder := cache_path(name)).is_dir() and any(folder.iterdir())]


def _find_rows(version: Version, where: str, memory_bytes: int, column: str = ROW) -> list[tuple[str, str]]:
    """The ids of the rows for which a condition in SQL is true, in order, each with its value in a column."""
    sql = f"SELECT {ROW}, {column} FROM data WHERE ({where}\n)"  # a comment in the condition ends with its line
    with open_selection(version, sql, memory_bytes, hides_values=True) as relation:
        return relation.fetchall()  # type: ignore[no-any-return]


def _holding_versions(catalog: Catalog, rows: Sequence[str], memory_bytes: int) -> dict[str, HoldingVersion]:
    """The versions of any data set that have some of the rows, by "name@<64 digits>"."""
    ids = pa.table({ROW: pa.array(rows, pa.string())})
    found = {}
    for name in catalog.names() if rows else ():
        for version in catalog.versions(name):
            if (manifest := find_manifest(catalog, f"{name}@{version}")) is None:
                continue
            with open_tables({"data": RowTable(catalog.open(manifest.whole_reference))}, memory_bytes) as connection:
                connection.register("erased", ids)
                (count,) = connection.execute(f"SELECT count(*) FROM data SEMI JOIN erased USING ({ROW})").fetchone()
            if count:
                found[manifest.whole_reference] = HoldingVersion(manifest.reference, count, manifest.bytes)
    return found


def _delete_leftovers(folder: Path) -> None:
    """Delete what killed commands left in the folder of a data set. Raises FolderBusy if something of it stays."""
    for leftover in leftovers_in(folder):
        if (found := delete_leftover(leftover)) is not None and found.kept:
            hint = "run the same command again when it has ended"
            raise FolderBusy(f"{found.path} cannot be deleted", found.kept, hint)
