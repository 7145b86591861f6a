"""`aifx doctor rules`: what is checked, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.options import SiteOption

if TYPE_CHECKING:
    from aifx.health.rules import Rule, Site


def rules(
    name: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A rule, or a family of rules.", show_default=False)
    ] = None,
    site: SiteOption = None,
    json: JsonOption = False,
) -> None:
    """List the rules, or explain one.

    Examples:
        aifx doctor rules
        aifx doctor rules nvidia
        aifx doctor rules nvidia.rows.pending
    """
    with terminal(json) as out:
        from aifx.health.rules import load_rules, read_site, select

        sites = read_site(site)
        chosen = select(load_rules(sites).values(), [name] if name else [], [])
        out.document({"rules": [rule.model_dump(mode="json") for rule in chosen]})
        if len(chosen) == 1:
            _explain(out, chosen[0], sites)
        else:
            rows = [(rule.id, rule.severity, _fails_if(rule)) for rule in chosen]
            out.table(["rule", "severity", "fails if"], rows, wrap=True)


def _fails_if(rule: Rule) -> str:
    from aifx.health.conditions import threshold_of

    return f"{rule.signal} {threshold_of(rule.fails_if)}"


def _explain(out: Output, rule: Rule, site: Site) -> None:
    from aifx.commands.doctor.report import details, show_rows
    from aifx.health.conditions import threshold_of

    applies = [f"{signal} {threshold_of(condition)}" for signal, condition in rule.applies_if.items()]
    changed = {*site.rules, *(own.get("id") for own in site.rule)}
    rows = {
        "severity": rule.severity,
        "looks at": f"each of {rule.for_each}" if rule.for_each else "the node",
        "applies if": " and ".join(applies),
        "fails if": _fails_if(rule),
        "says": rule.summary,
        "do": rule.action,
        "why": rule.detail,
        "source": rule.source,
        "yields to": ", ".join(rule.yields_to),
        "changed": "by the site's file" if rule.id in changed else "",
    }
    out.print(rule.id)
    show_rows(out, details(rows, indent=2, width=11))
