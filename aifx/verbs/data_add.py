"""Adding files, or the rows of a query, to a data set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from aifx.core.errors import UsageError
from aifx.core.plurals import counted
from aifx.core.redaction import redact
from aifx.core.requests import Request, RequestDone, find_request
from aifx.curation import add_plan
from aifx.curation.add_plan import (
    SHOWN,
    AddedFiles,
    ListedFiles,
    added_files,
    check_options,
    infer_kind,
    listed_files,
    of_kind,
    plan_add,
    run_add,
    with_listed,
)
from aifx.curation.databases.sources import QueryFetch, check_no_database, interrupted_reads, parse_query
from aifx.curation.erased import ERASED
from aifx.data.names import Kind
from aifx.data.readers.base import ReadOptions
from aifx.data.readers.sources import Listing, list_sources
from aifx.data.versions.catalog import check_dataset_name
from aifx.data.versions.manifest import check_license
from aifx.data.versions.requests import check_request
from aifx.verbs.arguments import StrPath, check_number
from aifx.verbs.catalogs import StepOptions, StepPlace, licensing_project, open_place

if TYPE_CHECKING:
    from aifx.core.project import Project
    from aifx.curation.databases.sources import Fetched
    from aifx.curation.execution import Made
    from aifx.data.readers.base import OwnReader
    from aifx.data.versions.manifest import Manifest

log = logging.getLogger(__name__)


def data_add(
    name: str,
    *sources: StrPath,
    license: str,
    query: str | None = None,
    key: str | None = None,
    kind: Kind | None = None,
    text_field: str = "text",
    encoding: str = "utf-8",
    split_at: str | None = None,
    max_bad: float = 0.01,
    allow_damaged: bool = False,
    max_expansion: float = 100.0,
    follow_links: bool = False,
    only: bool = False,
    request: str | None = None,
    **options: Unpack[StepOptions],
) -> AddedFiles:
    """Collect the rows of files, or of a query, into a data set.

    Reads only files that are new or changed; rows of other files stay. If there are too many bad rows, the result is
    not accepted, and the name still means the version before.

    Args:
        name: data set to make or to extend.
        sources: files, folders, globs or URLs that fsspec knows, or a database's URL.
        license: of the files: an SPDX expression, or "unknown".
        query: SQL whose rows to collect from the database.
        key: column of the query with unique values, so that an interrupted read resumes.
        kind: "text", "table", "images" or "chat"; by default what the files are.
        text_field: field with the text. It becomes the column "text".
        encoding: of text files without a byte order mark; "auto" finds it per file.
        split_at: begin a row of a text file at each line that matches this regular expression.
        max_bad: most bad rows: a share below 1, or a number.
        allow_damaged: take the rows before the damage of files that are damaged.
        max_expansion: refuse files that expand to more than 1 GiB and so many times their size.
        follow_links: follow links that lead out of a folder.
        only: leave out the rows of files that are not among these.
        request: an id: a second call with it reports what the first one did, whatever the name means since.

    Example:
        >>> added = aifx.data_add("corpus", "texts", license="CC-BY-4.0")
        >>> added.rows, added.quarantined
        (4, 0)
    """
    check_dataset_name(name)
    check_number("--max-bad", max_bad)
    check_number("--max-expansion", max_expansion)
    expression = check_license(license)
    act = " ".join(["data add", name, *map(str, sources), *([f"--query {query!r}"] if query is not None else [])])
    asked = find_request(request, redact(act))
    place = open_place(**options)
    _check_allowed(expression, name, place, options.get("project", "."))
    reading = ReadOptions(kind or "text", text_field, encoding, max_expansion, split_at)
    try:
        if asked is not None:
            check_request(place.catalog.store.below(name), asked)
        with _opened(place, name, sources, query, key, reading, kind, follow_links) as opened:
            return _add(place, name, expression, opened, max_bad, asked, allow_damaged=allow_damaged, only=only)
    except RequestDone as done:
        return done.repeated(AddedFiles)


def _add(
    place: StepPlace,
    name: str,
    license: str,
    opened: tuple[Listing, ReadOptions, QueryFetch | None],
    max_bad: float,
    asked: Request | None,
    *,
    allow_damaged: bool,
    only: bool,
) -> AddedFiles:
    """Add files that were opened. Raises RequestDone if another call did the request meanwhile."""
    listing, reading, fetch = opened

    def refusal(manifest: Manifest) -> str:
        return add_plan.refusal(manifest, max_bad, allows_damaged=allow_damaged)

    def outcome(made: Made) -> AddedFiles:
        return added_files(plan, made, listing, asked)

    plan = plan_add(place.catalog, name, listing, reading, license, only=only)
    made = run_add(
        plan,
        name,
        place.catalog,
        place.limits,
        place.runner,
        lambda manifest: not refusal(manifest),
        set_name=place.set_name,
        dry_run=place.dry_run,
        asked=None if asked is None else (asked, outcome),
    )
    if fetch is not None:
        fetch.remove()
    added = outcome(made)
    for folder, source in interrupted_reads(place.catalog, name).items():
        log.info("an interrupted read of %s left rows in %s: run it again, or aifx data gc", source, folder)
    if made.is_new and (erased := made.version.manifest.dropped_by.get(ERASED)):
        log.info("left out, because aifx data erase erased them: %s", counted(erased, "row"))
    if not added.is_accepted:
        meaning = "means no version" if place.catalog.latest(name) is None else "still means the version before"
        log.info("%s. %s %s", refusal(made.version.manifest), name, meaning)
    return added


def data_add_plan(
    name: str,
    *sources: StrPath,
    license: str,
    query: str | None = None,
    key: str | None = None,
    kind: Kind | None = None,
    text_field: str = "text",
    encoding: str = "utf-8",
    split_at: str | None = None,
    follow_links: bool = False,
    root: str | None = None,
    project: StrPath = ".",
) -> ListedFiles:
    """List the files that `data_add` would read, and read no row.

    Args:
        name: data set to make or to extend.
        root: folder or URL with the data sets; by default `datasets.root` of the project.
        project: a folder in the project whose data sets are meant.

    The other arguments are those of `data_add`.

    Example:
        >>> [file.name for file in aifx.data_add_plan("corpus", "texts", license="CC-BY-4.0").files]
        ['texts/copy.txt', 'texts/moby.txt', 'texts/notes.txt', 'texts/times.txt']
    """
    check_dataset_name(name)
    expression = check_license(license)
    place = open_place(root=root, project=project)
    _check_allowed(expression, name, place, project)
    asked = ReadOptions(kind or "text", text_field, encoding, split_at=split_at)
    with _opened(place, name, sources, query, key, asked, kind, follow_links, reads=False) as (listing, reading, _):
        return listed_files(name, reading.kind, listing)


def _check_allowed(license: str, name: str, place: StepPlace, folder: StrPath) -> None:
    """Raise DataError if the project does not allow a licence."""
    if (project := licensing_project(place.project, folder)) is not None and project.license_allow:
        from aifx.data.versions.licenses import check_allowed

        check_allowed({license: [f"the files for {name}"]}, project)


@contextmanager
def _opened(
    place: StepPlace,
    name: str,
    sources: Sequence[StrPath],
    query: str | None,
    key: str | None,
    asked: ReadOptions,
    kind: Kind | None,
    follow_links: bool,
    *,
    reads: bool = True,
) -> Iterator[tuple[Listing, ReadOptions, QueryFetch | None]]:
    """The files that have rows, how to read them, and the read of a database that made one of them.

    Raises UsageError, also if there is no file; DataError.
    """
    check_options(asked)
    given = [os.fspath(source) for source in sources]
    with ExitStack() as opened:
        fetch = None
        if query is not None:
            fetch = QueryFetch(parse_query(given, query, key), place.catalog, name)
            if reads:
                listing, fetched = opened.enter_context(fetch.fetched())
                _log_fetched(fetched)
            else:
                listing = opened.enter_context(fetch.described())
        elif key is not None:
            raise UsageError("--key can only be used with --query", "it is a column of a query", "leave it out")
        else:
            check_no_database(given)
            base = place.project.root if place.project else Path.cwd()
            readers = _own_readers(place.project)
            listing = list_sources(given, base, follow_links=follow_links, readers=readers)
            if kind == "images":
                listing = with_listed(listing, given, base, follow_links=follow_links)
        reading = asked
        if kind is None and listing.files:
            reading = replace(asked, kind=infer_kind(listing, asked))
        listing = of_kind(listing, reading.kind)
        _log_left_out(listing, reading.kind)
        yield listing, reading, fetch


def _own_readers(project: Project | None) -> dict[str, OwnReader]:
    """The readers that the project names in `datasets.readers`, by suffix. Raises ConfigError."""
    if project is None:
        return {}
    from aifx.kinds import load_config

    names = load_config(project).datasets.readers
    if not names:
        return {}
    from aifx.data.readers.own import find_readers

    return find_readers(names, project)


def _log_fetched(fetched: Fetched) -> None:
    if fetched.kept:
        log.info("kept %s of the interrupted read: the database still has them", counted(fetched.kept, "row"))
    if fetched.again:
        log.info("read %s of the interrupted read again: the database has changed", counted(fetched.again, "row"))


def _log_left_out(listing: Listing, kind: Kind) -> None:
    """Log the files that are not read. Raises UsageError if there are no others."""
    if listing.left_out:
        more = f" and {len(listing.left_out) - 1:,} more files" if len(listing.left_out) > 1 else ""
        log.info("left out, because they are no %s that aifx reads: %s%s", kind, listing.left_out[0], more)
    if listing.links:
        log.info("left out, because they lead out of their folder: %s", counted(len(listing.links), "link"))
        for link in listing.links[:SHOWN]:
            log.info("  %s", link)
        if len(listing.links) > SHOWN:
            log.info("  and %s more, which --json lists", f"{len(listing.links) - SHOWN:,}")
        log.info("--follow-links reads them")
    if not listing.files:
        why, hint = "the folders are empty", "aifx data add --help lists what can be read"
        if listing.left_out:
            why = f"aifx reads no {kind} from {counted(len(listing.left_out), 'file')}"
        elif listing.links:
            why, hint = "all files are links that lead out of their folder", "--follow-links"
        raise UsageError("there is nothing to add", why, hint)
