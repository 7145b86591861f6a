"""Reading, comparing, explaining and deleting versions of data sets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.core.requests import find_request
from aifx.verbs.arguments import StrPath
from aifx.verbs.catalogs import (
    DEFAULT_MEMORY,
    find_catalog,
    implicit_section,
    licensing_project,
    limits_of,
    memory_of,
    opened_rows,
    project_around,
)

if TYPE_CHECKING:
    from aifx.curation.databases.push import Pushed
    from aifx.curation.dataset_report import DatasetReport
    from aifx.curation.erasure import Erasure
    from aifx.curation.history import Lineage, LineageVersion, VersionDifference
    from aifx.curation.leftovers import CollectedGarbage
    from aifx.curation.profile import ColumnProfile, Profile, VersionProfile
    from aifx.curation.query import QueryFile, QueryResult
    from aifx.curation.reports import Verification, VerifiedVersion, VersionList, VersionPage
    from aifx.curation.row_history import Explanation, RowHistory

log = logging.getLogger(__name__)

UNUSED_DAYS = 7
"""Days for which a version that nothing refers to stays: a command on another machine may begin to use it."""


def data_ls(name: str | None = None, *, root: str | None = None, project: StrPath = ".") -> VersionList:
    """List data sets and their versions.

    Args:
        name: data set whose versions to list; by default those of all.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> [version.step for version in aifx.data_ls("letters").versions]
        ['add']
    """
    from aifx.curation.reports import list_versions

    catalog, _ = find_catalog(root, project)
    return list_versions(catalog, name)


def data_show_version(name: str, *, root: str | None = None, project: StrPath = ".") -> VersionPage:
    """Describe a version: its rows, columns and sources, the step that made it, and the runs trained on it.

    Args:
        name: data set: "NAME" for its latest version, "NAME@VERSION", or a key of aifx.toml such as "data.train".
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets and runs are meant.

    Example:
        >>> aifx.data_show_version("letters").step
        'add'
    """
    from aifx.curation.reports import show_files, show_version

    catalog, found = find_catalog(root, project)
    section = implicit_section(name, catalog, found)
    if section is None or found is None:
        return show_version(catalog, name, found or project_around(project))
    return show_files(name, section, found)


def data_verify(*names: str, all: bool = False, root: str | None = None, project: StrPath = ".") -> Verification:
    """Compare each file of a version with its SHA-256. The verdict is bad if one is damaged or missing.

    Args:
        names: versions to verify; by default the latest of each data set. Also "data.train", "data.validation",
            "data.test" or "data.path": the files that aifx.toml names.
        all: verify every version of every data set.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_verify("corpus").is_whole
        True
    """
    from aifx.curation.reports import Verification, verify_files, verify_version
    from aifx.data.versions.catalog import ReadFiles

    if all and names:
        raise UsageError("--all cannot be used with a name", "it verifies all data sets", "aifx data verify --all")
    catalog, found = find_catalog(root, project)
    references: Sequence[str] = names or catalog.names()
    if all:
        references = [f"{name}@{version}" for name in catalog.names() for version in catalog.versions(name)]

    read: ReadFiles = {}

    def verified(reference: str) -> VerifiedVersion:
        section = implicit_section(reference, catalog, found)
        if section is None or found is None:
            return verify_version(catalog, reference, read)
        return verify_files(reference, section, found)

    if not references:
        log.info("no data set in %s: aifx data add NAME FILES makes one", catalog.store.url)
    return Verification(tuple(map(verified, references)))


def data_diff(
    first: str, second: str | None = None, *, root: str | None = None, project: StrPath = "."
) -> VersionDifference:
    """Compare two versions: rows added, removed and changed, by source and by the rule that dropped them.

    Rows are the same if they have the same id ("_row") and the same content.

    Args:
        first: "NAME" for the latest version of a data set, or "NAME@VERSION".
        second: version to compare it with; by default, its parent is compared with it.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_diff("corpus").is_different
        True
    """
    from aifx.curation.history import compare_versions

    catalog, _ = find_catalog(root, project)
    if second is None:
        manifest = catalog.manifest(first)
        if not manifest.parents:
            what = f"{manifest.reference} has no parent"
            raise UsageError(what, f"`data {manifest.step.name}` made it from files", f"aifx data diff {first} B")
        first, second = manifest.parents[0], manifest.reference
    return compare_versions(catalog, first, second)


def data_lineage(name: str, *, root: str | None = None, project: StrPath = ".") -> Lineage:
    """Find the versions that one was made from, with their steps, indexes and tables, and the runs trained on them.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets and runs are meant.

    Example:
        >>> [version.step for version in aifx.data_lineage("letters").versions]
        ['add']
    """
    from aifx.curation.history import lineage_of

    catalog, found = find_catalog(root, project)
    return lineage_of(catalog, name, found or project_around(project))


def data_why(
    row: str | None = None,
    *,
    text: str | None = None,
    dataset: str | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> Explanation:
    """Explain a row: its source, the steps that it passed, and the step and rule that dropped it.

    The rows of earlier versions are searched too, so that dropped rows are found.

    Args:
        row: id of a row ("_row") or its beginning, or "SOURCE:NUMBER".
        text: find rows by a part of their text, in any case, instead.
        dataset: data set or version to search, or a key of aifx.toml such as "data.train"; by default the latest
            version of each.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> (history,) = aifx.data_why(text="parcel", dataset="letters").histories
        >>> history.source
        'letter.txt'
    """
    from aifx.curation.row_history import explain_row

    if (row is None) == (text is None):
        hint = 'aifx data why --text "call me Ishmael"'
        raise UsageError("aifx data why takes either ROW or --text", "they name a row", hint)
    if dataset is not None:
        with opened_rows(dataset, root, project) as (name, catalog):
            return explain_row(catalog, row, text, [name])
    catalog, _ = find_catalog(root, project)
    return explain_row(catalog, row, text, catalog.names())


def data_query(
    name: str,
    sql: str,
    *,
    rows: int = 100,
    memory: str = DEFAULT_MEMORY,
    root: str | None = None,
    project: StrPath = ".",
) -> QueryResult:
    """Read rows of a version with SQL, in DuckDB's dialect. The table is called `data`.

    The SQL can only read: it sees no other file and no network.

    Args:
        name: data set: "NAME" for its latest version, "NAME@VERSION", or a key of aifx.toml such as "data.train".
        sql: a SELECT over the table `data`.
        rows: most rows to read.
        memory: most memory to use, such as "4GB".
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_query("letters", "SELECT count(*) AS n FROM data").rows
        ((1,),)
    """
    from aifx.curation.query import query_rows

    size = memory_of(memory)
    with opened_rows(name, root, project) as (found, catalog):
        return query_rows(catalog.open(found), sql, rows, size)


def data_query_to_file(
    name: str,
    sql: str,
    output: StrPath,
    *,
    memory: str = DEFAULT_MEMORY,
    root: str | None = None,
    project: StrPath = ".",
) -> QueryFile:
    """Write all rows that SQL finds in a version to a file.

    In CSV files, an apostrophe before a cell keeps spreadsheets from taking it for a formula.

    Args:
        output: a .csv, .jsonl or .parquet file.

    The other arguments are those of `data_query`.

    Example:
        >>> aifx.data_query_to_file("letters", "SELECT text FROM data", "letters.csv").rows
        1
    """
    from aifx.curation.query import query_to_file
    from aifx.data.row_writers import output_format

    size, path = memory_of(memory), Path(output)
    output_format(path, "rows")
    with opened_rows(name, root, project) as (found, catalog):
        return query_to_file(catalog.open(found), sql, path, size)


def data_profile(name: str, *, root: str | None = None, project: StrPath = ".") -> VersionProfile:
    """Read the columns of a version, their values, and how long its texts are.

    The profile is a part of the version: no row is read.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_profile("letters").profile.rows
        1
    """
    from aifx.curation.profile import read_profile

    catalog, _ = find_catalog(root, project)
    return read_profile(catalog, name)


def data_report(
    name: str,
    *,
    html: StrPath | None = None,
    against: str | None = None,
    examples: int | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> DatasetReport:
    """Describe a version: sizes, lengths, duplicates, dropped rows, licences, personal data and drift.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        html: file to write the report to, as one page that loads nothing and runs nothing; by default
            NAME-VERSION.html in the working directory.
        against: version to measure drift against; by default the parent.
        examples: dropped rows to show by rule; by default 3, or none if a step removed personal data.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_report("corpus", html="corpus.html").reference == aifx.data_profile("corpus").reference
        True
    """
    from aifx.core.pages import write_page
    from aifx.curation.dataset_report import dataset_page, read_report

    catalog, _ = find_catalog(root, project)
    report = read_report(catalog, name, examples, against)
    write_page(dataset_page(report), Path(html or report.page_name))
    return report


def data_push(
    name: str,
    table: str,
    *,
    columns: Sequence[str] | None = None,
    replace: bool = False,
    dry_run: bool = False,
    request: str | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> Pushed:
    """Write the rows of a data set into a table of PostgreSQL, all in one transaction.

    The password comes from AIFX_DATABASE_PASSWORD or PostgreSQL's own variables and files.

    Args:
        name: data set: "NAME" for its latest version, or "NAME@VERSION".
        table: "postgresql://HOST/DATABASE/TABLE", or ".../SCHEMA.TABLE".
        columns: to write; by default all but those that aifx adds, such as "_row".
        replace: replace the rows of a table that is there.
        dry_run: look at the table, and write nothing.
        request: an id. A second call with it returns what the first one did, and writes nothing.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_push("letters", "postgresql://writer@127.0.0.1:1/shop/letters", dry_run=True)
        Traceback (most recent call last):
        ...
        aifx.core.errors.EnvironmentFault: ...
    """
    from aifx.curation.databases.push import find_pushed, parse_target, push
    from aifx.data.versions.catalog import check_own_rows
    from aifx.data.versions.licenses import check_licenses

    target = parse_target(table)
    asked = find_request(request, f"data push {name} {target.name}")
    catalog, found = find_catalog(root, project)
    if asked is not None and not dry_run and (before := find_pushed(catalog, target, asked)) is not None:
        return before
    version = catalog.open(name)
    check_own_rows(version.manifest, "aifx data push")
    allowing = licensing_project(found, project)
    conflicts = check_licenses([version.manifest], catalog, allowing, version.reference)
    how = {"yes": replace, "dry_run": dry_run}
    return push(catalog, version, target, columns, conflicts=conflicts, request=asked, **how)


def data_erase(
    name: str,
    where: str,
    *,
    purge: bool = False,
    dry_run: bool = False,
    confirm: Callable[[Erasure], None] | None = None,
    memory: str = DEFAULT_MEMORY,
    workers: int | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> Erasure:
    """Make a version without the rows that meet a condition, and list the runs trained on them.

    Earlier versions still hold the rows until they are purged. No record has the condition or the rows, only their
    number and a digest of their ids. Files that the configuration names are not changed: the result lists the file
    and the line of each row.

    Args:
        name: data set, whose latest version is meant, a key of aifx.toml such as "data.train", or a folder with records
            of servers such as "runs/main/records".
        where: condition of the rows, in SQL over their columns; of records over id, time, model, fingerprint, input and
            output.
        purge: also delete all versions of the data set that hold the rows; for files, the caches of text; for records,
            their requests and answers, which are only found without it.
        dry_run: find the rows, and change nothing.
        confirm: called with the plan before something is deleted. What it raises ends the erasure.
        memory: most memory to use, such as "4GB".
        workers: number of processes; by default one per core.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets and runs are meant.

    Example:
        >>> erased = aifx.data_erase("letters", "contains(text, 'Smith')", dry_run=True)
        >>> erased.rows, erased.made
        (1, None)
    """
    from aifx.curation import erasure

    if "/" in name:  # no name of a data set has one
        from aifx.curation.record_erasure import erase_records

        plan = erase_records(Path(project, name), where, dry_run=True)
        if not plan.rows or not purge or dry_run:
            return plan
        if confirm is not None:
            confirm(plan)
        return erase_records(Path(project, name), where, dry_run=False)
    limits = limits_of(memory, workers)
    catalog, found = find_catalog(root, project)
    how = {"purge": purge, "dry_run": dry_run}
    if (section := implicit_section(name, catalog, found)) is not None and found is not None:
        memory_bytes = limits.memory_bytes
        plan = erasure.plan_file_erasure(name, section, found, catalog, where, memory_bytes=memory_bytes, **how)
        if plan.purged and not dry_run:
            if confirm is not None:
                confirm(plan)
            erasure.purge_caches()
        return plan
    around = found or project_around(project)
    plan, step = erasure.plan_erasure(catalog, around, name, where, memory_bytes=limits.memory_bytes, **how)
    if not plan.rows or dry_run:
        return plan
    if plan.purged and confirm is not None:
        confirm(plan)
    return erasure.erase(catalog, plan, step, limits)


def data_gc(
    *,
    versions: bool = False,
    older_than: float = UNUSED_DAYS,
    dry_run: bool = False,
    confirm: Callable[[CollectedGarbage], None] | None = None,
    root: str | None = None,
    project: StrPath = ".",
) -> CollectedGarbage:
    """Delete what killed and unfinished commands left among the data sets, and on demand versions that nothing uses.

    A command that was killed does its work from the beginning after that. What a process uses stays. A version stays if
    its name means it, or a run, `data.dataset`, a recipe, a label file or another project's lease names it. So does all
    that it was made from.

    Args:
        versions: also delete versions that nothing refers to.
        older_than: days since such a version was made, at least.
        dry_run: find it, and delete nothing.
        confirm: called with what was found before something is deleted. What it raises ends the collection.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    Example:
        >>> aifx.data_gc().bytes
        0
    """
    from aifx.curation.leftovers import collect_garbage

    catalog, found = find_catalog(root, project)
    around = found or project_around(project)
    if versions and not 0 <= older_than < 36500:
        raise UsageError(f"--older-than {older_than:g} is no number of days", "it is 0 or more", "--older-than 7")

    def collect(*, dry_run: bool) -> CollectedGarbage:
        garbage = collect_garbage(catalog, dry_run=dry_run)
        if not versions:
            return garbage
        from aifx.curation.unused import with_unused
        from aifx.verbs.referrers import all_uses

        return with_unused(garbage, catalog, all_uses(catalog, around), older_than)

    if not dry_run:
        from aifx.verbs.referrers import renew

        renew(catalog, around)
    if confirm is not None and not dry_run and (planned := collect(dry_run=True)).deleted:
        confirm(planned)
    return collect(dry_run=dry_run)


def run_data_tasks(work: StrPath, element: int, elements: int) -> None:
    """Run one element's share of the tasks of a step, which works in a folder, in Slurm's array job."""
    from aifx.curation.on_slurm import run_share

    run_share(Path(work), element, elements)
