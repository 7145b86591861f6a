"""Options and arguments that the commands of `aifx data label` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.data.options import find_catalog
from aifx.data.versions.verification import check_shards

if TYPE_CHECKING:
    from aifx.curation.labels.contents import Shown
    from aifx.data.versions.catalog import Catalog
    from aifx.data.versions.manifest import Version

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


def open_shown(name: str, root: str | None, column: str, pair: str | None) -> tuple[Catalog, Version, Shown]:
    """The catalog, the version and what is shown of it. Raises UsageError, DataError."""
    from aifx.curation.labels.contents import shown_of

    catalog, _ = find_catalog(root)
    version = catalog.open(name)
    check_shards(version)
    return catalog, version, shown_of(version, column, pair)
