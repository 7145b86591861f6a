"""`aifx data query`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import FILES_HELP, MemoryOption, RootOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted
from aifx.core.sanitize import shorten
from aifx.verbs.catalogs import DEFAULT_MEMORY

CELL_WIDTH = 100


def query(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help=f"Data set: NAME for its latest version, or NAME@VERSION. {FILES_HELP}"),
    ],
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A SELECT over the table data.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write all rows to a .csv, .jsonl or .parquet file.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Print at most N rows.")] = 100,
    memory: MemoryOption = DEFAULT_MEMORY,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Read rows of a version with SQL. The table is called data.

    Examples:
        aifx data query corpus "SELECT count(*) FROM data"
        aifx data query corpus "DESCRIBE data"
        aifx data query data.train "SELECT count(*) FROM data"
        aifx data query corpus "SELECT _source, count(*) FROM data GROUP BY 1 ORDER BY 2 DESC"
        aifx data query corpus "SELECT text FROM data WHERE text LIKE '%whale%'" --output whales.jsonl

    The SQL is that of DuckDB. It can only read: it sees no other file and no network. --memory bounds it. In CSV files,
    an apostrophe before a cell keeps spreadsheets from taking it for a formula.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_query, data_query_to_file

        if output is not None:
            written = data_query_to_file(name, sql, output, memory=memory, root=root)
            out.result(written)
            out.print(f"{output}: {counted(written.rows, 'row')}, {readable_bytes(written.size_bytes)}")
            return
        found = data_query(name, sql, rows=rows, memory=memory, root=root)
        out.result(found)
        numbers = [name for name, kind in found.columns.items() if _is_number(kind)]
        out.table(list(found.columns), [tuple(map(_cell, row)) for row in found.rows], right=numbers)
        if found.is_cut:
            out.log(f"there are more than {counted(rows, 'row')}: --rows N prints more, --output FILE writes all")


def _is_number(kind: str) -> bool:
    return kind.endswith(("INT", "INTEGER")) or kind.startswith(("DOUBLE", "FLOAT", "DECIMAL"))


def _cell(value: Any) -> str | None:
    return None if value is None else shorten(str(value), CELL_WIDTH)
