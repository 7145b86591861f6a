"""Options that mean the same on each command that measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.core.errors import UsageError


@dataclass(frozen=True)
class Measuring:
    """How a suite is measured and what becomes of its report: one option an attribute.

    Attributes:
        launches: None for the usual number: 1 with --quick, 5 with --save, else 3.
    """

    quick: Annotated[bool, typer.Option("--quick", help="The sizes that matter most, each for a short time.")] = False
    launches: Annotated[
        int | None,
        typer.Option(
            "--launches",
            min=1,
            max=50,
            metavar="N",
            help="Processes that measure, one after the other.",
            show_default=False,
        ),
    ] = None
    save: Annotated[
        str | None,
        typer.Option(
            "--save", metavar="NAME", help="Keep it as a baseline: five launches or more.", show_default=False
        ),
    ] = None
    max_noise: Annotated[
        str, typer.Option("--max-noise", metavar="SHARE", help="What a baseline's intervals may be.")
    ] = "4%"
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write the report there too, as JSON.", show_default=False),
    ] = None
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write it as one page with pictures.", show_default=False),
    ] = None
    json: JsonOption = False


def read_share(text: str, option: str) -> float:
    """ "5%" or "0.05" as 0.05. Raises UsageError for anything else: who writes 5 means 5 %, and not 500 %."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 < number < (1000 if text.endswith("%") else 1):
        hint = f"{option} {text}%" if text.isdigit() and number else f"{option} 5%"
        raise UsageError(f"{option} {text} is no share", "it is above 0, and written as 5% or 0.05", hint)
    return number / 100 if text.endswith("%") else number
