"""`aifx doctor`: the health of this machine, with evidence and the next action."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.stopping import sigterm_as_ctrl_c
from aifx.commands.console.terminal import Output, terminal
from aifx.commands.doctor import fleet as fleet
from aifx.commands.doctor.bisect import BUDGET_S, bisect, collective_worker
from aifx.commands.doctor.diff import diff
from aifx.commands.doctor.formats import Format, for_monitor, tell
from aifx.commands.doctor.options import OnlyOption, ReplayOption, RootOption, SiteOption, SkipOption, exit_code
from aifx.commands.doctor.slurm import slurm
from aifx.core.errors import EnvironmentFault, ExitCode, UsageError

if TYPE_CHECKING:
    from aifx.health.report import Report
    from aifx.health.rules import Rule, Site
    from aifx.health.snapshot import Snapshot

app = typer.Typer()
app.command()(diff)
app.command()(bisect)
app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(collective_worker)
app.add_typer(slurm)

HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write the report as a page that can be mailed.", show_default=False),
]


class Stress(Enum):
    """How hard to work the devices."""

    QUICK = "quick"
    FULL = "full"


StressOption = Annotated[
    Stress | None,
    typer.Option(
        "--stress",
        help="Work every device as well: quick in about a minute, full in some. Only where no job runs.",
        show_default=False,
    ),
]
SnapshotOption = Annotated[
    bool, typer.Option("--with-snapshot", help="With --json: what was read as well, under 'snapshot'.")
]
FormatOption = Annotated[
    Format,
    typer.Option("--format", help="text, or one line and the exit codes of Nagios or node-problem-detector."),
]


@app.callback()
def doctor(
    ctx: typer.Context,
    only: OnlyOption = None,
    skip: SkipOption = None,
    site: SiteOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for warnings as well.")] = False,
    sample: Annotated[
        float, typer.Option("--sample", metavar="SECONDS", min=0, max=600, help="Look twice, so far apart, for rates.")
    ] = 0.0,
    stress: StressOption = None,
    root: RootOption = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="Keep what was read, to replay it.", show_default=False),
    ] = None,
    replay: ReplayOption = None,
    html: HtmlOption = None,
    project: Annotated[
        bool, typer.Option("--project", help="Import the project's own task too, to check the project in full.")
    ] = False,
    hosts: fleet.HostsOption = None,
    of_slurm: fleet.SlurmOption = False,
    agents: fleet.AgentsOption = None,
    timeout: fleet.TimeoutOption = None,
    at_once: fleet.AtOnceOption = None,
    remote: fleet.RemoteOption = "aifx",
    token_file: fleet.TokenFileOption = None,
    insecure_token: fleet.InsecureTokenOption = False,
    tls_ca: fleet.AuthorityOption = None,
    with_bisect: fleet.BisectOption = False,
    budget: fleet.BudgetOption = BUDGET_S,
    with_snapshot: SnapshotOption = False,
    list_skipped: Annotated[
        bool, typer.Option("--list-skipped", help="List the rules that were skipped, with the reasons.")
    ] = False,
    form: FormatOption = Format.TEXT,
    json: JsonOption = False,
) -> None:
    """Check the health of this machine, and tell what to do next.

    Exit 0: healthy, perhaps with warnings; 1: unhealthy; 2: something could not be looked at, or not run.

    Examples:
        aifx doctor
        aifx doctor --only nvidia --sample 10
        aifx doctor --stress quick
        aifx doctor --record node.json; aifx doctor --replay node.json
        aifx doctor --hosts nodes.txt
        aifx doctor rules nvidia.rows.pending
    """
    if ctx.invoked_subcommand is not None:
        _nothing_before(ctx)
        return
    node_options = NodeOptions(
        root,
        record,
        replay,
        html,
        sample,
        stress.value if stress else None,
        with_snapshot,
        strict,
        project,
        list_skipped,
    )
    ways = (hosts, of_slurm, agents or (), timeout, at_once, remote)
    trust = (token_file, insecure_token, tls_ca)
    fleet_options = fleet.FleetOptions(
        *ways, *trust, with_bisect, budget, only or (), skip or (), sample, node_options.stress
    )
    with terminal(json) if form is Format.TEXT else for_monitor(json) as out:
        from aifx.health.rules import read_site

        sites = read_site(site)
        if fleet.is_asked(ctx, fleet_options, replay):
            if project:
                raise UsageError("--project checks the project here", "a fleet is other machines", "leave one out")
            fleet.check_fleet(out, fleet_options, sites, strict=strict, record=record, replay=replay, html=html)
        _check_node(out, node_options, form, sites, only or (), skip or ())


@dataclass(frozen=True)
class NodeOptions:
    """How one machine is looked at, and what becomes of it; the options of these names."""

    root: Path | None
    record: Path | None
    replay: Path | None
    html: Path | None
    sample: float
    stress: Literal["quick", "full"] | None
    with_snapshot: bool
    strict: bool
    imports_project: bool
    list_skipped: bool


def _check_node(
    out: Output, node_options: NodeOptions, form: Format, site: Site, only: Sequence[str], skip: Sequence[str]
) -> NoReturn:
    from aifx.commands.doctor.report import show
    from aifx.commands.doctor.stress import show_stress
    from aifx.health.check import check
    from aifx.health.facts import to_document
    from aifx.health.rules import load_rules, select

    began = time.monotonic()
    rules = select(load_rules(site).values(), only, skip)
    ended, snapshot = _snapshot(out, node_options, rules)
    report = check(snapshot, rules, site, began)
    ids = [rule.id for rule in rules]
    faults = _keep(node_options, snapshot, report, ids)
    if form is not Format.TEXT:
        out.tell(faults)
        tell(report, form, node_options.strict)
    measured = {"stress": to_document(snapshot.facts["stress"])} if node_options.stress else {}
    kept = {"snapshot": snapshot.document()} if node_options.with_snapshot else {}
    out.document(report.document() | measured | kept)
    show(out, report, ids, node_options.list_skipped)
    if node_options.stress:
        show_stress(out, snapshot.facts["stress"])
    out.tell(faults)
    raise SystemExit(int(ended) or exit_code(report.status, node_options.strict, faults))


def _keep(node_options: NodeOptions, snapshot: Snapshot, report: Report, ids: list[str]) -> list[EnvironmentFault]:
    """Writes the files that were asked for; what could not be written must not keep the report from being told."""
    faults = []
    if node_options.record is not None:
        from aifx.health.snapshot import write

        try:
            write(snapshot, node_options.record)
        except EnvironmentFault as fault:
            faults.append(fault)
        except OSError as error:
            why = error.strerror or str(error)
            faults.append(
                EnvironmentFault(f"{node_options.record} cannot be written", why, "aifx doctor --record ANOTHER_FILE")
            )
    if node_options.html is not None:
        from aifx.core.pages import write_page
        from aifx.health.page import node_page

        try:
            write_page(node_page(report, ids, snapshot.time), node_options.html)
        except EnvironmentFault as fault:
            faults.append(fault)
    return faults


def _snapshot(out: Output, node_options: NodeOptions, rules: list[Rule]) -> tuple[ExitCode, Snapshot]:
    """What is judged, and the code of a stress that was ended. Raises UsageError for options at odds."""
    from aifx.health.check import collect
    from aifx.health.host import Host
    from aifx.health.snapshot import read

    root, record, replay = node_options.root, node_options.record, node_options.replay
    if replay is not None:
        if (
            root is not None
            or record is not None
            or node_options.sample
            or node_options.stress
            or node_options.imports_project
        ):
            raise UsageError(
                "--replay reads nothing of a machine",
                "--root, --record, --sample, --stress and --project do",
                f"aifx doctor --replay {replay}",
            )
        return ExitCode.OK, read(replay)
    if root is not None and node_options.imports_project:
        raise UsageError("--project checks a project here", f"--root {root} is a copy of files", "leave one out")
    if root is not None and not root.is_dir():
        raise UsageError(f"--root {root} is no folder", "", "aifx doctor --root DIR, with DIR/proc and DIR/sys in it")
    if root is not None and not _holds_a_machine(root):
        raise UsageError(
            f"--root {root} holds no files of a machine",
            f"none in {', '.join(f'{name}/' for name in OF_A_MACHINE)}",
            "aifx doctor --root DIR, with DIR/proc and DIR/sys in it",
        )
    if root is not None and node_options.stress:
        raise UsageError("--stress works this machine's devices", f"--root {root} is a copy of files", "leave one out")
    host = Host(root or Path("/"), imports_project=node_options.imports_project)
    if node_options.stress is None:
        return ExitCode.OK, collect(host, rules, node_options.sample)
    with sigterm_as_ctrl_c() as stop:
        snapshot = collect(host, rules, node_options.sample, node_options.stress, out.say)
    is_ended = snapshot.scope().look_up("stress.ended") == "interrupted"
    return stop.code if is_ended else ExitCode.OK, snapshot


OF_A_MACHINE = ("proc", "sys", "etc", "var", "dev", "aifx-captured")
"""The folders that probes read."""


def _holds_a_machine(root: Path) -> bool:
    return any(files for name in OF_A_MACHINE for _, _, files in os.walk(root / name))


def _nothing_before(ctx: typer.Context) -> None:
    """Raises UsageError for options of the check that stand before another command."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if ctx.get_parameter_source(name).name == "COMMANDLINE":  # type: ignore[union-attr]
            command = f"aifx doctor {ctx.invoked_subcommand}"
            raise UsageError(
                f"{parameter.opts[0]} stands before the command", "it belongs to the check alone", f"{command} --help"
            )


@app.command()
def rules(
    name: Annotated[str | None, typer.Argument(metavar="[ID]", help="A rule or family.", show_default=False)] = None,
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
    rows = {
        "severity": rule.severity,
        "looks at": f"each of {rule.for_each}" if rule.for_each else "the node",
        "where": " and ".join(applies),
        "fails if": _fails_if(rule),
        "says": rule.summary,
        "do": rule.action,
        "why": rule.detail,
        "source": rule.source,
        "yields to": ", ".join(rule.yields_to),
        "changed": "by the site's file" if rule.id in site.rules or rule.id in {r.get("id") for r in site.rule} else "",
    }
    out.print(rule.id)
    show_rows(out, details(rows, indent=2, width=11))


from aifx.commands.doctor import serve  # noqa: E402, F401 (registers its command)
