"""`aifx line`: commands about the file of a line, which run nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.core.plurals import counted

FileOption = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="File of the line. By default line.toml of the project.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the group `aifx line`."""
    app.command()(check)


def _check_command(words: Sequence[str]) -> None:
    from aifx.commands.app import app
    from aifx.commands.console.typer_internals import check_words

    check_words(app, words)


def check(file: FileOption = None, json: JsonOption = False) -> None:
    """Check a line without running it, and report every finding with its place.

    It finds circles, two stations of one name, commands and options that aifx does not have, names that mean nothing,
    variables that are not set, and stations that train without cooldown and budget_per_day. Exit code 1 if there are
    findings.

    Examples:
        aifx line check
        aifx line check --file nightly.toml --json
    """
    with terminal(json) as out:
        from aifx.verbs.line_files import line_check

        found = line_check(file, check_command=_check_command)
        out.result(found)
        for one in found.findings:
            out.print(one.describe(found.path))
            if one.hint:
                out.print(f"  hint: {one.hint}")
        valid = f"valid, {counted(len(found.stations), 'station')}"
        out.print(f"{found.path}: {counted(len(found.findings), 'finding') if found.findings else valid}")
