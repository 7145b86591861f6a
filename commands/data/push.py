"""`aifx data push`."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import DatasetArgument, RootOption, names_of
from aifx.core.plurals import counted


def push(
    name: DatasetArgument,
    table: Annotated[
        str, typer.Argument(metavar="URL", help="Table: postgresql://HOST/DATABASE/TABLE, or …/SCHEMA.TABLE.")
    ],
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns", metavar="NAME,…", help="Columns to write. By default all but those that aifx adds, as _row."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace the rows of a table that is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at the table, print what would be written, and write nothing.")
    ] = False,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Write the rows of a data set into a table of PostgreSQL, all in one transaction.

    Examples:
        aifx data push orders postgresql://writer@db.example/shop/clean_orders --dry-run
        aifx data push orders@3f2a postgresql://writer@db.example/shop/sales.clean_orders
        aifx data push orders postgresql://writer@db.example/shop/clean_orders --columns id,_split --yes

    The password comes from AIFX_DATABASE_PASSWORD or PostgreSQL's own variables and files. If aifx or the server is
    killed, the table is unchanged.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_push

        chosen = names_of(columns, "--columns", "--columns id,text") if columns is not None else None
        found = data_push(name, table, columns=chosen, replace=yes, dry_run=dry_run, root=root)
        out.result(found)
        verb = "written to" if found.is_written else "would be written to"
        out.print(f"{found.reference}: {counted(found.rows, 'row')} {verb} {found.table}")
        if found.replaced_rows is not None:
            out.print(f"in place of {counted(found.replaced_rows, 'row')}")
        out.table(["column", "type"], [(one.name, one.type) for one in found.columns])
