"""`aifx monitor`: rows of now beside those that a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.score.options import ModelArgument, ModelOptions
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.core.plurals import counted
from aifx.verbs.jobs import refuse_job

RowsArgument = Annotated[
    list[str], typer.Argument(metavar="ROWS", help="Rows of now: files, or data sets as NAME or NAME@VERSION.")
]
AgainstOption = Annotated[
    str,
    typer.Option(
        "--against", metavar="ROWS", help="Rows to compare with: training, a file, or a data set as NAME@VERSION."
    ),
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="COLUMN",
        help="Time of a row, to compare the same parts of the week. By default monitor.time.",
    ),
]
WindowOption = Annotated[
    str | None, typer.Option("--window", metavar="AGE", help="Leave out rows that are older, such as 24h or 7d.")
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", metavar="COLUMN<=EFFECT", help='Effect that a column may have: "amount <= 0.2". Can be repeated.'
    ),
]

HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a web page to FILE.")]
PrometheusOption = Annotated[
    Path | None,
    typer.Option(
        "--prometheus", metavar="FILE", help="Also write metrics to FILE, for node_exporter's textfile collector."
    ),
]


@option_group
def monitor(
    model: ModelArgument,
    rows: RowsArgument,
    against: AgainstOption = "training",
    time: TimeOption = None,
    window: WindowOption = None,
    limit: LimitOption = None,
    html: HtmlOption = None,
    prometheus: PrometheusOption = None,
    *,
    options: ModelOptions,
) -> None:
    """Compare rows of now, and a model's predictions for them, with the rows that it was trained on.

    Examples:
        aifx monitor fraud@production orders
        aifx monitor fraud@production orders --time created_at --window 7d
        aifx monitor main today.csv --against orders@3f2a --limit "amount <= 0.2"
        aifx monitor fraud@production orders --html drift.html

    Exits 1 if a column drifted: its effect counts, and is larger than chance makes the effect of any column.
    """
    with terminal(options.json) as out, sigterm_as_ctrl_c():
        refuse_job("monitor")
        check_limits()
        from aifx.verbs.monitoring import monitor as compare

        chosen, named = options.resolve(model)
        found = compare(
            chosen,
            *rows,
            against=against,
            time=time,
            window=window,
            limits=limit or (),
            html=html,
            prometheus=prometheus,
            **named,
        )
        out.result(found)
        rows_of = [
            [
                one.column,
                one.of,
                f"{one.effect:.3f}",
                f"{one.usual:.3f}",
                f"{one.least:g}",
                "drifted" if one.drifted else "",
            ]
            for one in found.columns
        ]
        out.table(["column", "of", "effect", "usual", "counts", ""], rows_of, right=["effect", "usual", "counts"])
        for name, reason in found.left_out.items():
            out.log(f"{name} is not compared: {reason}")
        beside = f"{counted(found.rows, 'row')} beside {found.reference_rows:,} of {found.reference}"
        out.print(f"{beside}{f', by {found.part}' if found.part else ''}")
        drifted = f"drifted: {', '.join(found.drifted)}" if found.drifted else "no column drifted"
        out.print(drifted)
