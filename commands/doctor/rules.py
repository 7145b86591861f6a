"""`aifx doctor rules`: what is checked, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.options import SiteOption

if TYPE_CHECKING:
    from aifx.verbs.health import Rule


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
        from aifx.verbs.health import doctor_rules

        found = doctor_rules(name, site=site)
        out.result(found)
        if len(found.rules) == 1:
            _explain(out, found.rules[0], is_changed=found.rules[0].id in found.changed)
        else:
            rows = [(rule.id, rule.severity, rule.failure) for rule in found.rules]
            out.table(["rule", "severity", "fails if"], rows, wrap=True)


def _explain(out: Output, rule: Rule, *, is_changed: bool) -> None:
    from aifx.commands.doctor.report import details, show_rows

    rows = {
        "severity": rule.severity,
        "looks at": f"each of {rule.for_each}" if rule.for_each else "the node",
        "applies if": rule.precondition,
        "fails if": rule.failure,
        "says": rule.summary,
        "do": rule.action,
        "why": rule.detail,
        "source": rule.source,
        "yields to": ", ".join(rule.yields_to),
        "changed": "by the site's file" if is_changed else "",
    }
    out.print(rule.id)
    show_rows(out, details(rows, indent=2, width=11))
