"""`aifx data ls` and `verify`, and the page of `aifx data show NAME`."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import FILES_HELP, RootOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted

MOST_SOURCES = 20


def ls(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="List the versions of this data set. By default of all.")
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """List data sets and their versions.

    Examples:
        aifx data ls
        aifx data ls corpus --json
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_ls

        found = data_ls(name, root=root)
        out.result(found)
        for one in found.unreadable:
            out.log(f"{one.reference} cannot be read: {one.why}")
        for hint in dict.fromkeys(one.hint for one in found.unreadable):
            out.log(f"hint: {hint}")
        if not found.versions:
            if not found.unreadable:
                out.log(f"no data set in {found.root}: aifx data add NAME FILES makes one")
            return
        rows = [
            (
                f"{version.reference}{' *' if version.is_latest else ''}",
                f"{version.rows:,}",
                readable_bytes(version.size_bytes),
                version.step,
                ", ".join(version.licenses),
            )
            for version in found.versions
        ]
        out.table(["version", "rows", "size", "made by", "licences"], rows, right=["rows", "size"])


def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME…]", help=f"Versions to verify. By default the latest of each. {FILES_HELP}"),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Verify every version of every data set.")] = False,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Compare each file of a version with its SHA-256.

    Examples:
        aifx data verify corpus
        aifx data verify corpus@3f2a --json
        aifx data verify --all
        aifx data verify data.train     read the files that training reads, except those of stores

    Exits 1 if a file is damaged or missing.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_verify

        found = data_verify(*(names or ()), all=all_, root=root)
        out.result(found)
        for version in found.versions:
            state = "damaged" if version.damages else "whole"
            out.print(
                f"{version.reference}: {state}: {counted(version.files, 'file')}, {readable_bytes(version.size_bytes)}"
            )
            for damage in version.damages:
                out.print(f"  {damage}")
            if version.unread:
                out.print(f"  {counted(version.unread, 'file')} of a store: compared by ETag or time, not read")


def print_page(out: Output, name: str, root: str | None) -> None:
    """Print what a version is, or the files of a key of aifx.toml: rows, columns, sources, and runs trained on it."""
    from aifx.verbs.data_versions import data_show_version

    page = data_show_version(name, root=root)
    out.result(page)
    rows = "" if page.rows is None else f", {counted(page.rows, 'row')}"
    out.print(f"{page.reference}: {page.kind}{rows}, {readable_bytes(page.size_bytes)}")
    if page.step:
        made_from = f" from {', '.join(page.parents)}" if page.parents else ""
        out.print(f"made by {page.step} {page.settings_text}".rstrip() + made_from)
    if page.runs:
        out.print(f"trained on it: {', '.join(page.runs)}")
    if page.columns:
        out.print("")
        out.table(["column", "type"], list(page.columns.items()))
    if page.sources:
        out.print("")
        licences = ["licence"] if page.step else []  # nobody has said so of files
        files = [
            (one.name, None if one.rows is None else f"{one.rows:,}", readable_bytes(one.bytes), one.license)
            for one in page.sources[:MOST_SOURCES]
        ]
        columns = ["file", "rows", "size", *licences]
        out.table(columns, [row[: len(columns)] for row in files], right=["rows", "size"])
        if len(page.sources) > len(files):
            out.print(f"and {len(page.sources) - len(files):,} more files")
