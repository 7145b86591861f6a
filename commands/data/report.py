"""`aifx data report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, RootOption


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
        from aifx.verbs.data_versions import data_report

        found = data_report(name, html=html, against=against, examples=examples, root=root)
        out.result(found)
        out.print(str(html or found.page_name))
