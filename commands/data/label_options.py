"""Options and arguments that the commands of `aifx data label` share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

ColumnOption = Annotated[
    str, typer.Option("--column", metavar="NAME", help="Column that the labels are for. Each has its own labels.")
]

PairOption = Annotated[
    str | None,
    typer.Option("--pair", metavar="A,B", help="Columns with two texts, of which labellers choose the better one."),
]

FileFormatOption = Annotated[
    Literal["label-studio", "jsonl", "csv"] | None,
    typer.Option(
        "--format",
        metavar="label-studio|jsonl|csv",
        help="Format of FILE. By default that of its name: .json is Label Studio's.",
    ),
]
