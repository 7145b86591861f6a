"""`aifx doctor fleet`: many nodes at once, compared with each other and ranked (docs/doctor-fleet.md)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import JsonOption, given_options, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.bisect import BUDGET_S, search_among, show_search
from aifx.commands.doctor.options import (
    CheckOptions,
    HostsOption,
    RemoteOption,
    SlurmOption,
    TokenFileOption,
    exit_code,
    value_option,
)
from aifx.core.errors import EnvironmentFault, ExitCode, UsageError
from aifx.core.lifecycle import exit_code_of

if TYPE_CHECKING:
    from aifx.health.fleet.ask import Answers
    from aifx.health.fleet.report import FleetReport

ON_ANSWERS = {"only", "skip", "site", "strict", "replay", "html", "json"}
"""Options for the answers. All other options determine how nodes are asked."""


@dataclass(frozen=True)
class FleetOptions(CheckOptions):
    """Which nodes are checked and how, and where the report goes: one option per attribute."""

    hosts: HostsOption = None
    slurm: SlurmOption = False
    agents: Annotated[
        list[str] | None,
        value_option("--agents", "Check the node where `aifx doctor serve` listens at URL. Can be repeated.", "URL"),
    ] = None
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect", help="Also find the bad node or link with collective tests. They load the nodes' network."
        ),
    ] = False
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="SECONDS", min=0, help=f"Limit the time of --bisect. Default: {BUDGET_S:g}."),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0.1,
            help="Limit the time of each node. Default: 30, with --stress quick 300, full 1800.",
        ),
    ] = None
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", metavar="N", min=1, help="Ask N nodes at a time. Default: 64, agents 256."),
    ] = None
    remote: RemoteOption = "aifx"
    token_file: TokenFileOption = None
    insecure_token: Annotated[
        bool, typer.Option("--insecure-token", help="Send the token to other machines also without TLS.")
    ] = False
    tls_ca: Annotated[Path | None, value_option("--tls-ca", "Trust agents whose certificates FILE has signed.")] = None
    json: JsonOption = False


@option_group
def fleet(*, options: FleetOptions) -> None:
    """Check many nodes at once, compare them with each other, and rank the suspects.

    Exit 0: healthy, possibly with warnings; 1: something is unhealthy, or a node does not answer; 2: the state of a
    part is unknown, or the check cannot run.

    Examples:
        aifx doctor fleet --hosts nodes.txt
        salloc -N 64 aifx doctor fleet --slurm --stress quick
        aifx doctor fleet --agents http://n1:9470 --agents http://n2:9470
        aifx doctor fleet --hosts nodes.txt --bisect --budget 600
    """
    with terminal(options.json) as out:
        from aifx.commands.doctor.fleet_report import show_fleet
        from aifx.health.fleet.assess import assess, check_patterns
        from aifx.health.rules import read_site

        began, site = time.monotonic(), read_site(options.site)
        only, skip = options.only or (), options.skip or ()
        check_patterns([*only, *skip], site)
        answers = _recorded(options) if options.replay is not None else _ask(out, options)
        nodes, search, ended = answers.nodes, None, ExitCode.OK
        if answers.ended_by is not None:
            ended = exit_code_of(answers.ended_by)
        elif options.bisect:
            budget_s = BUDGET_S if options.budget is None else options.budget
            search, ended = search_among(nodes, options.slurm, options.remote, budget_s)
        report = assess(
            nodes,
            site,
            only=only,
            skip=skip,
            not_heard=answers.not_heard,
            tested=search.findings() if search else (),
            duration_s=time.monotonic() - began,
        )
        faults = _save(report, options.html)
        out.document(report.document() | ({"bisect": search.document()} if search else {}))
        show_fleet(out, report)
        if search:
            out.print("")
            show_search(out, search, sum(node.report is not None for node in nodes))
        out.report(faults)
        raise SystemExit(int(ended) or exit_code(report.status, options.strict, faults))


def _recorded(options: FleetOptions) -> Answers:
    from aifx.health.fleet.ask import Answers
    from aifx.health.fleet.record import read_record

    assert options.replay is not None
    if wrong := next((option for name, option in given_options(options).items() if name not in ON_ANSWERS), None):
        why = "a replay evaluates recorded answers and asks no node"
        raise UsageError(f"{wrong} cannot be used with --replay", why, f"aifx doctor fleet --replay {options.replay}")
    return Answers(*read_record(options.replay))


def _ask(out: Output, options: FleetOptions) -> Answers:
    from aifx.health.agent_token import read_authority, read_token
    from aifx.health.fleet.ask import ask, check_testable, find_targets, split_remote
    from aifx.health.fleet.transports import Inquiry

    if options.budget is not None and not options.bisect:
        raise UsageError("--budget requires --bisect", "", f"--bisect --budget {options.budget:g}")
    targets = find_targets(options.hosts, slurm=options.slurm, agents=options.agents or ())
    if options.bisect:
        check_testable(targets)
    inquiry = Inquiry(
        only=options.only or (),
        skip=options.skip or (),
        sample_s=options.sample,
        stress=options.stress.value if options.stress else None,
        timeout_s=options.timeout,
        at_once=options.at_once,
        remote=split_remote(options.remote),
        token=read_token(options.token_file),
        insecure_token=options.insecure_token,
        tls=read_authority(options.tls_ca),
    )
    count = len(targets.all)
    out.log(f"asking {count:,} node{'s' * (count != 1)}")
    return ask(targets, inquiry, options.record)


def _save(report: FleetReport, html: Path | None) -> list[EnvironmentFault]:
    """Write the page. Return the failure: the report is still printed if the page could not be written."""
    if html is None:
        return []
    from aifx.core.pages import write_page
    from aifx.health.page import fleet_page

    try:
        write_page(fleet_page(report, time.time()), html)
    except EnvironmentFault as fault:
        return [fault]
    return []
