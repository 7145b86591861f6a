"""`aifx monitor`: rows of now beside those that a model was trained on."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.score.options import ModelArgument, ModelOptions
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.core.plurals import counted
from aifx.verbs.jobs import refuse_job

if TYPE_CHECKING:
    from aifx.feedback.monitoring import Monitored

WIDTH = 80

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
        "--limit",
        metavar="NAME<=NUMBER",
        help='Largest effect of a column, or a limit of a metric: "amount <= 0.2", "outcome.accuracy >= 0.9". Can be '
        "repeated.",
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

    Exits 1 if a column drifted: its effect counts, and is larger than chance makes the effect of any column. Also if
    a metric's whole interval is outside a gate of eval.gates or a limit.
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
        out.print(f"{counted(found.rows, 'row')} beside {found.reference_rows:,} of {found.reference}")
        if found.part:
            out.print(f"part of the week: {found.part}")
        out.print(f"drifted: {', '.join(found.drifted)}" if found.drifted else "no column drifted")
        _print_performance(out, found)


def _print_performance(out: Output, found: Monitored) -> None:
    one = found.performance
    if one is not None:
        rows = []
        for metric in one.metrics:
            interval = "" if metric.low is None else f"{metric.low:.4g} to {metric.high:.4g}"
            before = "" if metric.reference is None else f"{metric.reference:.4g}"
            rows.append([metric.metric, metric.of, f"{metric.value:.4g}", interval, before])
        head = ["metric", "", "now", "95 % interval", "reference"]
        out.table(head, rows, right=["now", "95 % interval", "reference"])
        if one.outcomes:
            out.print(f"measured: {counted(one.outcomes, 'row')} with outcomes, {one.pending:,} without so far")
        if one.unknown:
            out.log(f"{counted(one.unknown, 'outcome')} of classes that the model does not know: in no metric")
        if one.assumes:
            out.print(fill(f"estimated, which assumes: {one.assumes}", WIDTH))
        for limit in one.limits:
            word = (
                "passed" if limit.passed else "breached" if limit.breached else "in doubt: its interval holds the limit"
            )
            out.print(f"{limit.expr} ({limit.of} {limit.value:.4g}): {word}")
    for name, reason in found.unmeasured.items():
        out.log(f"{name}: {reason}")
