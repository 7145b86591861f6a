"""`aifx doctor`: its commands. `node` runs if the command line names none (`aifx.commands.app.COMMANDS`).

Here are `rules`, `diff` and `serve`; the others have modules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.options import JsonOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.fleet import bisect, collective_worker, fleet
from aifx.commands.doctor.node import node
from aifx.commands.doctor.options import OnlyOption, SiteOption, SkipOption, TokenFileOption, value_option
from aifx.commands.doctor.slurm import slurm
from aifx.core.sanitize import one_line

if TYPE_CHECKING:
    from aifx.verbs.health import Difference, Finding, Rule


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


MAX_CELL = 60


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="Snapshot that --record wrote.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Later snapshot, or one of a node that should be equal.")],
    all_: Annotated[
        bool,
        typer.Option(
            "--all", help="Also show facts that change on a healthy machine, with the reason why they are left out."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also exit 1 for new findings that are not critical.")
    ] = False,
    site: SiteOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two snapshots: the findings and facts that came, went and changed.

    Exit 0: B has no new critical finding (with --strict: no new finding); 1: it has one; 2: aifx cannot read a file.

    Examples:
        aifx doctor diff monday.json today.json
        aifx doctor diff good-node.json bad-node.json --all
    """
    with terminal(json) as out:
        from aifx.verbs.health import doctor_diff

        compared = doctor_diff(before, after, strict=strict, site=site)
        out.result(compared)
        if not out.json:
            _show(out, compared.difference, all_)


def _show(out: Output, found: Difference, all_: bool) -> None:
    times = [f"{datetime.fromtimestamp(side.time):%Y-%m-%d %H:%M}" for side in (found.a, found.b)]
    right = times[1] if found.a.host == found.b.host else f"{found.b.host} {times[1]}"
    out.print(f"{found.a.host} {times[0]} ({found.a.status}) -> {right} ({found.b.status})")
    moved = f"{len(found.came)} came, {len(found.went)} went, {len(found.changed)} changed"
    booted = "; it was booted in between" if found.rebooted else ""
    out.print(f"findings: {moved}; facts changed: {sum(not f.noise for f in found.facts)}{booted}")
    for finding in found.came:
        _finding(out, "came", finding, {"rule": finding.id, "seen": finding.evidence, "do": finding.action})
    for finding in found.went:
        _finding(out, "went", finding, {"rule": finding.id})
    for pair in (*found.changed, *(found.figures if all_ else ())):
        old, new = pair.before, pair.after
        grown = f"{old.severity} -> {new.severity}: " if old.severity != new.severity else ""
        was = f"{grown}was: {old.summary} ({old.evidence})"
        _finding(out, "changed", new, {"rule": new.id, "": was, "seen": new.evidence, "do": new.action})
    facts = [f for f in found.facts if all_ or not f.noise]
    if facts:
        out.print("")
        columns = ["fact", *(["left out as"] if all_ else []), "A -> B"]
        rows = [(f.fact, *([f.noise] if all_ else []), f"{_cell(f.before)} -> {_cell(f.after)}") for f in facts]
        out.table(columns, rows, wrap=True)
    if found.not_compared:
        rules = sum("." in name for name in found.not_compared)
        parts = [name for name in found.not_compared if "." not in name]
        out.print("")
        words = ", ".join([*parts, *([f"{rules} rules"] if rules else [])])
        out.print(f"not compared, since only one of them has it: {words}")
    left_out = len(found.figures) + sum(bool(f.noise) for f in found.facts)
    if left_out and not all_:
        out.log(f"{left_out} changes left out: counters, loads, temperatures and times (--all shows them)")


def _finding(out: Output, mark: str, finding: Finding, rows: Mapping[str, str]) -> None:
    from aifx.commands.doctor.report import STYLES, details, show_rows

    out.print("")
    first = (f"{mark:8}{finding.severity:10}", STYLES[finding.severity], finding.headline, "")
    show_rows(out, [first, *details(rows, 8, 10)])


def _cell(value: Any) -> str:
    """Return a value of a snapshot's JSON for a table."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        missing = [f"{name}: {value[f'${name}']}" for name in ("absent", "unknown") if f"${name}" in value]
        text = missing[0] if missing else "there"
    elif isinstance(value, list):
        text = ", ".join(str(item) for item in value) or "none"
    else:
        text = str(value) if not isinstance(value, bool) else "yes" if value else "no"
    text = one_line(text)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}..."


PORT = 9470


@dataclass(frozen=True)
class ServeOptions:
    """Where the agent listens, for whom, and what it checks: one option per attribute."""

    bind: Annotated[str, typer.Option("--bind", metavar="ADDRESS", help="Listen at ADDRESS.")] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Listen at this port; 0 takes a free one.")
    ] = PORT
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0, help="Check at most once per SECONDS.")
    ] = 60.0
    token_file: TokenFileOption = None
    tls_cert: Annotated[Path | None, value_option("--tls-cert", "Use TLS with the certificate in FILE.")] = None
    tls_key: Annotated[Path | None, value_option("--tls-key", "Read the certificate's key from FILE.")] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Answer other machines without asking them for a token.")
    ] = False
    only: OnlyOption = None
    skip: SkipOption = None
    site: SiteOption = None


@option_group
def serve(*, options: ServeOptions) -> None:
    """Serve this node's health over HTTP: /healthz, /v1/report, and /metrics for Prometheus.

    The check runs if a client asks and the last check is older than the interval. All but /healthz ask for the token.

    Examples:
        aifx doctor serve
        aifx doctor serve --bind 0.0.0.0 --token-file /etc/aifx/token
        aifx doctor serve --skip jax
    """
    with terminal() as out:
        from aifx.verbs.health import doctor_serve

        agent = doctor_serve(
            bind=options.bind,
            port=options.port,
            interval_s=options.interval,
            token_file=options.token_file,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            insecure=options.insecure,
            only=options.only or (),
            skip=options.skip or (),
            site=options.site,
        )
        open_to_all = "" if agent.listening.has_token else ", without a token"
        agent.wait(lambda: out.log(f"listening at {agent.url}{open_to_all}; Ctrl-C ends it"))


app = typer.Typer(
    help="""Check the health of machines, and say what to do next.

    Without a command, `aifx doctor` runs `node`, which checks this machine: see `aifx doctor node --help`.

    Examples:
        aifx doctor                             check this machine
        aifx doctor --only nvidia --sample 10   its GPUs, with rates over 10 seconds
        aifx doctor fleet --hosts nodes.txt     check many nodes, rank the suspects
        aifx doctor rules nvidia.rows.pending   explain a rule
    """
)
for command in (node, fleet, bisect, serve, diff, rules):
    app.command()(command)
app.add_typer(slurm)
app.command(hidden=True)(collective_worker)
