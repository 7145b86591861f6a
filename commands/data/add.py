"""`aifx data add`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import RequestOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import StepOptions
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted, either

if TYPE_CHECKING:
    from aifx.verbs.data_add import AddedFiles, ListedFiles

SHOWN = 10
"""Files whose encoding the command prints."""


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
    request: RequestOption = None,
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
    with terminal(given.json) as out:
        from aifx.verbs.data_add import data_add, data_add_plan

        if dry_run:
            listed = data_add_plan(
                name,
                *sources,
                license=license_,
                query=query,
                key=key,
                kind=kind,
                text_field=text_field,
                encoding=encoding,
                split_at=split_at,
                follow_links=follow_links,
                root=given.root,
            )
            out.result(listed)
            _print_listed(out, listed)
            return
        added = data_add(
            name,
            *sources,
            license=license_,
            query=query,
            key=key,
            kind=kind,
            text_field=text_field,
            encoding=encoding,
            split_at=split_at,
            max_bad=max_bad,
            allow_damaged=allow_damaged,
            max_expansion=max_expansion,
            follow_links=follow_links,
            request=request,
            **given.of_step(),
        )
        out.result(added)
        _print(out, added)


def _print_listed(out: Output, found: ListedFiles) -> None:
    sizes = ["-" if one.size_bytes is None else f"{one.size_bytes:,}" for one in found.files]
    files = [(one.name, f"{one.format}{one.compression}", size) for one, size in zip(found.files, sizes, strict=True)]
    out.table(["file", "format", "bytes"], files, right=["bytes"])


def _print(out: Output, found: AddedFiles) -> None:
    there = "" if found.is_new else ", which was there already"
    if found.is_repeated:
        there = ", as an earlier call with this request id reported"
    out.print(f"{found.reference}: {counted(found.rows, 'row')}, {readable_bytes(found.size_bytes)}{there}")
    out.print(f"{counted(found.files_read, 'file')} read, {found.files_unchanged:,} unchanged")
    if found.quarantined or found.damaged_files:
        counts = {"bad row": found.quarantined, "damaged file": found.damaged_files}
        texts = [f"{count:,} {noun}{'s' * (count != 1)}" for noun, count in counts.items() if count]
        out.print(f"in quarantine: {', '.join(texts)}")
        for row in found.bad_rows:
            out.print(f"  {row.source}{f':{row.line}' if row.line else ''}: {row.reason}")
        if found.quarantined + found.damaged_files > len(found.bad_rows):
            out.print(f"  and {found.quarantined + found.damaged_files - len(found.bad_rows):,} more")
        for source, likely in found.likely_encodings.items():
            out.print(f"{source} seems to be {either(likely)}: run it again with --encoding {likely[0]}")
    if found.encodings:
        counts = Counter(found.encodings.values())
        shares = [f"{name} {counted(count, 'file')}" for name, count in counts.most_common()]
        out.print(f"encodings: {', '.join(shares)}")
        others = [(source, encoding) for source, encoding in found.encodings.items() if encoding != "utf-8"]
        for source, encoding in others[:SHOWN]:
            out.print(f"  {source}: {encoding}")
        if len(others) > SHOWN:
            out.print(f"  and {len(others) - SHOWN:,} more, which --json lists")
