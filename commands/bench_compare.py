"""`aifx bench compare`, `gate`, `history`, `ls`, `show`: what was measured, held against what was measured before."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.bench import app
from aifx.commands.options import JsonOption
from aifx.commands.terminal import terminal


@app.command()
def show(
    what: Annotated[
        str | None, typer.Argument(metavar="[REPORT]", help="NAME, NAME@COMMIT or a file.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a report that was kept; without a name, the last one, whole or not.

    Examples:
        aifx bench show
        aifx bench show main
    """
    with terminal(json) as out:
        from aifx.bench.results import read_report
        from aifx.bench.store import last_path, open_store
        from aifx.commands.bench_report import show as show_report

        report = open_store().find(what) if what else read_report(last_path())
        out.document(report.document())
        show_report(out, report)
