"""`aifx score`: predictions of a model for rows that a target has none of."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.options import RequestOption, option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.score.options import ModelArgument, ModelOptions
from aifx.core.lifecycle import sigterm_as_ctrl_c
from aifx.core.limits import check_limits
from aifx.core.plurals import counted
from aifx.verbs.jobs import refuse_job

SourceArgument = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="Rows: a file, a data set (NAME or NAME@VERSION), or the URL of a table."),
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="Folder to which a file is added, or the URL of a table.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="COLUMN", help="Column with a different value in each row. By default _row of a data set."
    ),
]

QueryOption = Annotated[
    str | None, typer.Option("--query", metavar="SQL", help="Score the rows of a query. SOURCE is the database's URL.")
]
SinceLastOption = Annotated[
    bool, typer.Option("--since-last", help="Read only rows that came to the table after its last scoring.")
]
GrowingOption = Annotated[
    str | None,
    typer.Option(
        "--growing", metavar="COLUMN", help="With --since-last: column that only grows, in the order of commits."
    ),
]


@option_group
def score(
    model: ModelArgument,
    source: SourceArgument,
    target: TargetArgument,
    key: KeyOption = None,
    query: QueryOption = None,
    since_last: SinceLastOption = False,
    growing: GrowingOption = None,
    request: RequestOption = None,
    *,
    options: ModelOptions,
) -> None:
    """Predict for the rows of a source that a target has no predictions of.

    Examples:
        aifx score fraud@production orders scores
        aifx score main orders.csv scores --key order_id
        aifx score fraud@production orders@3f2a scores --request 2026-12-03.1
        aifx score main sqlite:///shop.db/orders scores --key id --growing id

    Each row is scored once by a model version, also if calls are repeated, killed or made at the same time.
    """
    with terminal(options.json) as out, sigterm_as_ctrl_c():
        refuse_job("score")
        check_limits()
        from aifx.verbs.scoring import score as score_rows

        chosen, named = options.resolve(model)
        found = score_rows(
            chosen,
            source,
            target,
            key=key,
            query=query,
            since_last=since_last,
            growing=growing,
            request=request,
            **named,
        )
        out.result(found)
        there = ", as an earlier call with this request id reported" if found.is_repeated else ""
        out.print(
            f"{found.target}: {counted(found.scored, 'prediction')} added, by {found.model}, step {found.step}{there}"
        )
        out.print(f"{counted(found.rows, 'row')} read, {found.known:,} scored before")
