"""Options that mean the same on every command that takes them."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.completion import complete_run, complete_setting

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else, for scripts.")]

RunOption = Annotated[
    str | None,
    typer.Option("--run", metavar="NAME", help="Name of the run.", show_default=False, autocompletion=complete_run),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Set a value for this call, over aifx.toml. Can be repeated.",
        show_default=False,
        autocompletion=complete_setting,
    ),
]

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the defaults.")]

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
