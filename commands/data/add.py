"""`aifx data add`."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import StepOptions, find_catalog
from aifx.core.errors import ExitCode, UsageError
from aifx.core.plurals import counted

if TYPE_CHECKING:
    from aifx.curation.add_reports import AddedFiles
    from aifx.curation.databases.sources import Fetched, QueryFetch
    from aifx.data.readers.sources import Listing
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Manifest


@option_group
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set to make or to extend.")],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SRC…", help="Files, folders, globs or URLs that fsspec knows, or a database's URL."),
    ],
    license_: Annotated[
        str,
        typer.Option("--license", metavar="SPDX", help="Licence of the files: an SPDX expression, or 'unknown'."),
    ],
    given: StepOptions,
    query: Annotated[
        str | None,
        typer.Option("--query", metavar="SQL", help="Collect the rows of this query of the database SRC."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="COLUMN",
            help="Column of the query with unique values, so that an interrupted read resumes. PostgreSQL alone.",
        ),
    ] = None,
    kind: Annotated[
        Literal["text", "table", "images", "chat"] | None,
        typer.Option(
            "--kind",
            metavar="text|table|images|chat",
            help="What rows are. By default images for pictures, text for texts and files with the text field, chat "
            "for lists of messages. With images, a .csv is a list of pictures.",
        ),
    ] = None,
    text_field: Annotated[
        str, typer.Option("--text-field", metavar="NAME", help="Field with the text. It becomes the column 'text'.")
    ] = "text",
    encoding: Annotated[
        str,
        typer.Option(
            "--encoding",
            metavar="NAME",
            help="Encoding of text files without a byte order mark; 'auto' finds it per file.",
        ),
    ] = "utf-8",
    split_at: Annotated[
        str | None,
        typer.Option(
            "--split-at",
            metavar="REGEX",
            help="Begin a row of a text file at each line that matches. By default a file is a row.",
        ),
    ] = None,
    max_bad: Annotated[
        float,
        typer.Option(
            "--max-bad", metavar="SHARE|N", min=0.0, help="Exit 1 if more rows are bad: a share below 1, or a number."
        ),
    ] = 0.01,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Take the rows before the damage of files that are damaged.")
    ] = False,
    max_expansion: Annotated[
        float,
        typer.Option(
            "--max-expansion", metavar="TIMES", min=1.0, help="Refuse files that expand to more than 1 GiB and so much."
        ),
    ] = 100.0,
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", help="Follow links that lead out of a folder. By default they are left out."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and read nothing.")] = False,
) -> None:
    """Collect the rows of files into a data set.

    Examples:
        aifx data add corpus texts/ --license CC-BY-4.0
        aifx data add corpus book.txt --split-at '^CHAPTER ' --license CC0-1.0
        aifx data add corpus 'dump/*.jsonl.zst' --text-field body --license unknown
        aifx data add prices s3://bucket/prices.parquet --license CC0-1.0
        aifx data add talks chats.jsonl --kind chat --license unknown
        aifx data add corpus texts/ --license CC-BY-4.0 --encoding auto
        aifx data add corpus texts/ --license CC-BY-4.0 --dry-run
        aifx data add parts list.csv --kind images --license CC0-1.0
        aifx data add orders postgresql://me@db/shop --query 'SELECT * FROM orders' --key id --license unknown

    Reads only files that are new or changed; rows of other files stay. Bad rows go to quarantine with file and line.
    Exits 1 if there are more than --max-bad, or a file is damaged: then NAME still means the version before.
    """
    with terminal(given.json) as out, ExitStack() as opened:
        from aifx.curation.add_plan import check_options, infer_kind, of_kind, plan_add, run_add, with_listed
        from aifx.curation.add_reports import BadRows, added_files, listed_files
        from aifx.curation.databases.sources import interrupted_reads
        from aifx.data.readers.base import ReadOptions
        from aifx.data.readers.sources import list_sources
        from aifx.data.versions.catalog import check_dataset_name
        from aifx.data.versions.licenses import check_license

        check_dataset_name(name)
        expression = check_license(license_)
        catalog, project = find_catalog(given.root)
        limits = given.limits
        runner = given.runner(catalog)
        fetch = _fetch_of(sources, query, key, catalog, name)
        if fetch is None:
            base = project.root if project else Path.cwd()
            listing = list_sources(sources, base, follow_links=follow_links)
            if kind == "images":
                listing = with_listed(listing, sources, base, follow_links=follow_links)
        elif dry_run:
            listing = opened.enter_context(fetch.described())
        else:
            listing, fetched = opened.enter_context(fetch.fetched())
            _log_fetched(out, fetched)
        options = ReadOptions(kind or "text", text_field, encoding, max_expansion, split_at)
        check_options(options)
        if kind is None and listing.files:
            options = replace(options, kind=infer_kind(listing, options))
        listing = of_kind(listing, options.kind)
        _log_left_out(out, listing, options.kind)
        if dry_run:
            listed = listed_files(name, options.kind, listing)
            out.document(listed)
            sizes = ("-" if one.size_bytes is None else f"{one.size_bytes:,}" for one in listed.files)
            files = [(one.name, f"{one.format}{one.compression}", size)
                     for one, size in zip(listed.files, sizes, strict=True)]  # fmt: skip
            out.table(["file", "format", "bytes"], files, right=["bytes"])
            return

        def refusal(manifest: Manifest) -> str:
            return BadRows.of(manifest).refusal(max_bad, allows_damaged=allow_damaged)

        plan = plan_add(catalog, name, listing, options, expression)
        made = run_add(plan, name, catalog, limits, runner, accepts=lambda manifest: not refusal(manifest))
        if fetch is not None:
            fetch.remove()
        found = added_files(plan, made, listing)
        out.document(found)
        _print(out, found)
        for folder, source in interrupted_reads(catalog, name).items():
            out.log(f"an interrupted read of {source} left rows in {folder}: run it again, or aifx data gc")
        if not made.is_accepted:
            meaning = "means no version" if catalog.latest(name) is None else "still means the version before"
            out.log(f"{refusal(made.version.manifest)}. {name} {meaning}")
            raise SystemExit(ExitCode.VERDICT)


def _fetch_of(sources: list[str], query: str | None, key: str | None, catalog: Catalog, name: str) -> QueryFetch | None:
    """The read of a database; None if the sources are files. Raises UsageError."""
    from aifx.curation.databases.sources import QueryFetch, check_no_database, parse_query

    if query is not None:
        return QueryFetch(parse_query(sources, query, key), catalog, name)
    if key is not None:
        raise UsageError("--key can only be used with --query", "it is a column of a query", "leave it out")
    check_no_database(sources)
    return None


def _log_fetched(out: Output, fetched: Fetched) -> None:
    if fetched.kept:
        out.log(f"kept {counted(fetched.kept, 'row')} of the interrupted read: the database still has them")
    if fetched.again:
        out.log(f"read {counted(fetched.again, 'row')} of the interrupted read again: the database has changed")


def _log_left_out(out: Output, listing: Listing, kind: str) -> None:
    if listing.left_out:
        more = f" and {len(listing.left_out) - 1:,} more files" if len(listing.left_out) > 1 else ""
        out.log(f"left out, because they are no {kind} that aifx reads: {listing.left_out[0]}{more}")
    if listing.links:
        from aifx.curation.add_reports import SHOWN

        out.log(f"left out, because they lead out of their folder: {counted(len(listing.links), 'link')}")
        for link in listing.links[:SHOWN]:
            out.log(f"  {link}")
        if len(listing.links) > SHOWN:
            out.log(f"  and {len(listing.links) - SHOWN:,} more, which --json lists")
        out.log("--follow-links reads them")
    if not listing.files:
        why, hint = "the folders are empty", "aifx data add --help lists what can be read"
        if listing.left_out:
            why = f"aifx reads no {kind} from {counted(len(listing.left_out), 'file')}"
        elif listing.links:
            why, hint = "all files are links that lead out of their folder", "--follow-links"
        raise UsageError("there is nothing to add", why, hint)


def _print(out: Output, found: AddedFiles) -> None:
    from aifx.core.json_files import readable_bytes
    from aifx.curation.add_reports import SHOWN
    from aifx.data.readers.likely_encodings import listed

    there = "" if found.is_new else ", which was there already"
    out.print(f"{found.reference}: {counted(found.rows, 'row')}, {readable_bytes(found.size_bytes)}{there}")
    out.print(f"{counted(found.files_read, 'file')} read, {found.files_unchanged:,} unchanged")
    if found.quarantined or found.damaged_files:
        counts = {"bad row": found.quarantined, "damaged file": found.damaged_files}
        shown = [f"{count:,} {noun}{'s' * (count != 1)}" for noun, count in counts.items() if count]
        out.print(f"in quarantine: {', '.join(shown)}")
        for row in found.bad_rows:
            out.print(f"  {row.source}{f':{row.line}' if row.line else ''}: {row.reason}")
        if found.quarantined + found.damaged_files > len(found.bad_rows):
            out.print(f"  and {found.quarantined + found.damaged_files - len(found.bad_rows):,} more")
        for source, likely in found.likely_encodings.items():
            out.print(f"{source} seems to be {listed(likely)}: run it again with --encoding {likely[0]}")
    if found.encodings:
        counts = Counter(found.encodings.values())
        shares = [f"{name} {counted(count, 'file')}" for name, count in counts.most_common()]
        out.print(f"encodings: {', '.join(shares)}")
        others = [(source, encoding) for source, encoding in found.encodings.items() if encoding != "utf-8"]
        for source, encoding in others[:SHOWN]:
            out.print(f"  {source}: {encoding}")
        if len(others) > SHOWN:
            out.print(f"  and {len(others) - SHOWN:,} more, which --json lists")
