"""`aifx kpis`: what projects used and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal

if TYPE_CHECKING:
    from aifx.verbs.accounting import Kpis

ProjectsArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[PROJECT]...", help="Folders of projects. By default the project here."),
]


def kpis(
    projects: ProjectsArgument = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="AGE", help="Count what is not older, such as 30d. By default all."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="GROUP", help="Also add up each team, tag, model or month.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a web page to FILE.")] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write comma-separated values to FILE.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Add up what projects used and what came of it: time, money, promotions.

    Examples:
        aifx kpis
        aifx kpis --since 30d
        aifx kpis --since 90d --by month --html kpis.html
        aifx kpis fraud/ search/ --since 1w --json

    Reads what is on disk, and runs no code of the projects. A number that is not known is "-", never 0.
    """
    with terminal(json) as out:
        from aifx.verbs.accounting import kpis as add_up

        found = add_up(*(projects or ()), since=since, by=cast("Any", by), html=html, csv=csv)
        out.result(found)
        _print(out, found)


def _print(out: Output, found: Kpis) -> None:
    out.table(["kpi", "value", "unit"], [(one.name, one.text, one.unit) for one in found.kpis], right=["value"])
    rows = [
        (name, *(f"{one.categories[name]:,.4g}" for one in found.hours))
        for name in found.hours[0].categories
        if any(one.categories[name] for one in found.hours)
    ]
    if rows:
        names = [f"{one.devices} h" for one in found.hours]
        out.table(["where the time went", *names], rows, right=names)
    if found.costs:
        parts = [(one.name, f"{one.cost:,.6g}") for one in found.costs]
        out.table(["where the money went", "currency"], parts, right=["currency"])
    if found.by is not None:
        columns = ["runs", "accelerator_hours", "goodput", "money", "promotions", "refused_promotions"]
        groups = [(group.name, {one.name: one.text for one in group.kpis}) for group in found.groups]
        lines = [(name, *(given[column] for column in columns)) for name, given in groups]
        out.table([found.by, *(name.replace("_", " ") for name in columns)], lines)
    lacks: dict[str, list[str]] = {}
    for one in found.kpis:
        for lack in one.missing:
            lacks.setdefault(lack, []).append(one.name)
    for lack, names in lacks.items():
        out.print(f"not in {', '.join(names)}: {lack}")
    for problem in found.problems:
        out.log(f"not read: {problem}")
