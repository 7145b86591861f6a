"""Contents of data sets: `aifx data profile`, `query` and `report`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.chart import bar
from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.data.options import FILES_HELP, DatasetArgument, MemoryOption, RootOption
from aifx.core.json_files import readable_bytes
from aifx.core.plurals import counted
from aifx.core.sanitize import shorten
from aifx.verbs.catalogs import DEFAULT_MEMORY

if TYPE_CHECKING:
    from aifx.verbs.data_versions import ColumnProfile, Profile


BAR = 36
MOST_BARS = 12
MOST_VALUES = 10


def profile(name: DatasetArgument, root: RootOption = None, json: JsonOption = False) -> None:
    """Print the columns of a version, their values, and how long its texts are.

    Examples:
        aifx data profile corpus
        aifx data profile corpus@3f2a --json

    aifx makes the profile when it makes the version, and reads no row here.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_profile

        found = data_profile(name, root=root)
        out.result(found)
        one = found.profile
        out.print(f"{found.reference}: {counted(one.rows, 'row')}, {readable_bytes(one.bytes)}")
        _print_columns(out, one)
        for unit, lengths in one.lengths.items():
            what = {"bytes": "images", "messages": "chats"}.get(unit, "texts")
            title = f"{unit} of {lengths.rows:,} {what}: mean {lengths.mean:,.0f}, median {lengths.quantile(0.5):,}"
            out.print(f"\n{title}, at most {lengths.max:,}")
            _print_bars(out, {f"{edge:,}": count for edge, count in lengths.folded(MOST_BARS)})
        for name, column in one.columns.items():
            _print_values(out, name, column)


def _print_columns(out: Output, one: Profile) -> None:
    def formatted(value: Any) -> str | None:
        return None if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)[:16]

    rows = [
        (
            name,
            column.type,
            f"{column.nulls:,}",
            None if column.distinct is None else f"{'~' if column.is_estimate else ''}{column.distinct:,}",
            formatted(column.min),
            formatted(column.max),
        )
        for name, column in one.columns.items()
    ]
    out.print("")
    out.table(["column", "type", "null", "distinct", "least", "greatest"], rows, right=["null", "distinct"])


def _print_values(out: Output, name: str, column: ColumnProfile) -> None:
    if column.histogram is not None and column.histogram.rows:
        found = column.histogram
        sampled = f" of {counted(found.rows, 'row')}" if found.rows else ""
        out.print(f"\n{name}{sampled}, by value")
        every = 2 if len(found.counts) > MOST_BARS else 1
        starts = range(0, len(found.counts), every)
        _print_bars(out, {f"{found.edges[start]:.5g}": sum(found.counts[start : start + every]) for start in starts})
    elif len(column.values) > 1:
        most = list(column.values.items())[:MOST_VALUES]
        rest = f", the {len(most)} most frequent values" if len(most) < (column.distinct or 0) else ""
        out.print(f"\n{name}, rows by value{rest}")
        _print_bars(out, dict(most))


def _print_bars(out: Output, counts: Mapping[str, int]) -> None:
    for line in bars(counts, ascii_only=not out.out.encoding.lower().startswith("utf")):
        out.print(line)


def bars(counts: Mapping[str, int], *, ascii_only: bool = False) -> Iterator[str]:
    """A line for each: its name, a bar, its number. At most 80 columns wide."""
    top = max(counts.values(), default=0) or 1
    labels: Sequence[str] = [shorten(label, 28) for label in counts]
    width = max(map(len, labels), default=0)
    for label, count in zip(labels, counts.values(), strict=True):
        drawn = bar(count / top, BAR, ascii_only=ascii_only)
        yield f"  {label:>{width}}  {drawn:<{BAR}} {count:,}".rstrip()


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


def report(
    name: DatasetArgument,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="File to write. By default NAME-VERSION.html in this folder."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="NAME", help="Version to measure drift against. By default the parent."),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            "--examples",
            metavar="N",
            min=0,
            help="Dropped rows to show by rule. By default 3, or none if a step removed personal data.",
        ),
    ] = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Write a version as one page: sizes, lengths, duplicates, dropped rows, licences, personal data and drift.

    Examples:
        aifx data report corpus
        aifx data report corpus@3f2a --html report.html
        aifx data report corpus --against corpus@91bc --examples 5

    The page is one file, which loads nothing and runs nothing.
    """
    with terminal(json) as out:
        from aifx.verbs.data_versions import data_report

        found = data_report(name, html=html, against=against, examples=examples, root=root)
        out.result(found)
        out.print(str(html or found.page_name))
