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
    """How a suite is measured and where its report goes: one attribute per option.

    Attributes:
        launches: None for the usual number: 1 with --quick, 5 with --save, otherwise 3.
    """

    quick: Annotated[
        bool, typer.Option("--quick", help="Measure only the most important sizes, each for a short time.")
    ] = False
    launches: Annotated[
        int | None,
        typer.Option(
            "--launches",
            min=1,
            max=50,
            metavar="N",
            help="Number of processes that measure, one after the other. By default 3; 1 with --quick, 5 with --save.",
            show_default=False,
        ),
    ] = None
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            metavar="NAME",
            help="Save the report as baseline NAME. Needs five launches or more.",
            show_default=False,
        ),
    ] = None
    max_noise: Annotated[
        str, typer.Option("--max-noise", metavar="SHARE", help="Maximum relative noise allowed in a baseline.")
    ] = "4%"
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Also write the report to FILE, as JSON.", show_default=False),
    ] = None
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Also write the report to FILE, as a page with plots.", show_default=False
        ),
    ] = None
    json: JsonOption = False


def read_share(text: str, option: str) -> float:
    """Return "5%" or "0.05" as 0.05. Raises UsageError for 5, which means 5 % and not 500 %."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 < number < (1000 if text.endswith("%") else 1):
        hint = f"{option} {text}%" if text.isdigit() and number else f"{option} 5%"
        raise UsageError(f"{option} {text} is not a share", "a share is above 0, such as 5% or 0.05", hint)
    return number / 100 if text.endswith("%") else number
