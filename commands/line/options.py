"""Options that the commands of `aifx line` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import DryRunOption, JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import AifxError

FileOption = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="File of the line. By default line.toml of the project."),
]
AllowShellOption = Annotated[
    bool, typer.Option("--allow-shell", help="Run stations with shell = true, which start any program.")
]
StationArgument = Annotated[str, typer.Argument(metavar="STATION", help="Station of the line.")]
OptionalStationArgument = Annotated[
    str | None, typer.Argument(metavar="[STATION]", help="Station of the line. By default the whole line.")
]


@dataclass(frozen=True)
class TickOptions:
    """Options of the commands that run ticks."""

    allow_shell: AllowShellOption = False
    dry_run: DryRunOption = False
    file: FileOption = None
    json: JsonOption = False


@dataclass(frozen=True)
class DecisionOptions:
    """Options of the commands that write a person's decision."""

    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason, for the history.")] = ""
    file: FileOption = None
    json: JsonOption = False


@contextmanager
def line_terminal(file: Path | None, json: bool = False) -> Iterator[Output]:
    """The frame of a command of a line. Hints of errors name the file that it was given."""
    with terminal(json) as out:
        try:
            yield out
        except AifxError as e:
            from aifx.verbs.line_ticks import with_file

            e.hint = with_file(e.hint, file)
            raise
