"""Options and exit codes that mean the same on each of the doctor's commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from aifx.core.errors import AifxError

OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="ID", help="Judge only this rule or family. Can be repeated.", show_default=False),
]
SkipOption = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="ID", help="Leave out a rule or family. Can be repeated.", show_default=False),
]
SiteOption = Annotated[
    Path | None,
    typer.Option(
        "--site",
        metavar="FILE",
        help="The site's rules, skips and expected figures; else ~/.config/aifx/health.toml or /etc/aifx/health.toml.",
        show_default=False,
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Look at a copy of a machine's files.", show_default=False),
]
ReplayOption = Annotated[
    Path | None,
    typer.Option("--replay", metavar="FILE", help="Judge what --record kept.", show_default=False),
]


def exit_code(status: str, strict: bool, faults: Sequence[AifxError] = ()) -> int:
    """The exit code of a report; a file that was asked for and could not be written counts as unknown."""
    code = {"unhealthy": 1, "unknown": 2, "warning": int(strict)}.get(status, 0)
    return 1 if status == "unhealthy" else max(code, 2 * bool(faults))
