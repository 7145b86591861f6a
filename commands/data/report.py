"""`aifx data report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, RootOption, find_catalog


def report(
    name: DatasetArgument,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="File to write. By default NAME-VERSION.html in this folder."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="NAME", help="Version to measure drift against. By default the parent."),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            "--examples",
            metavar="N",
            min=0,
            help="Dropped rows to show by rule. By default 3, or none if a step removed personal data.",
        ),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Write a version as one page: sizes, lengths, duplicates, dropped rows, licences, personal data and drift.

    Examples:
        aifx data report corpus
        aifx data report corpus@3f2a --html report.html
        aifx data report corpus --against corpus@91bc --examples 5

    The page is one file, which loads nothing and runs nothing.
    """
    with terminal(json) as out:
        from aifx.core.pages import write_page
        from aifx.curation.dataset_report import read_report
        from aifx.curation.page import dataset_page

        catalog, _ = find_catalog(root)
        found = read_report(catalog, name, examples, against)
        path = html or Path(f"{found.reference.replace('@', '-')}.html")
        write_page(dataset_page(found), path)
        out.document(found)
        out.print(str(path))
