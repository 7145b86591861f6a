"""`aifx doctor fleet` and `bisect`: many nodes compared and ranked (docs/doctor-fleet.md); searches for slow ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import JsonOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.options import (
    CheckOptions,
    HostsOption,
    RemoteOption,
    SlurmOption,
    TokenFileOption,
    value_option,
)
from aifx.core.lifecycle import interrupt_or_request

if TYPE_CHECKING:
    from aifx.commands.doctor.report import Row
    from aifx.verbs.health_fleet import BisectResult, FleetReport, NodeGroup, Suspect


BUDGET_S = 900.0
REHEARSE = "Delay each message of a node, or over a link, to see that it is found. Can be repeated."


@dataclass(frozen=True)
class BisectOptions:
    """Which nodes are tested and how: one option per attribute."""

    hosts: HostsOption = None
    slurm: SlurmOption = False
    budget: Annotated[
        float, typer.Option("--budget", metavar="SECONDS", min=0, help="Limit the time of all tests.")
    ] = BUDGET_S
    limit: Annotated[float, typer.Option("--limit", metavar="SECONDS", min=1, help="Limit the time of one test.")] = (
        120.0
    )
    expect: Annotated[
        float,
        typer.Option(
            "--expect",
            metavar="GB_S",
            min=0,
            help="Expect this bus bandwidth of all nodes together; 0 if it is unknown.",
        ),
    ] = 0.0
    margin: Annotated[
        float,
        typer.Option(
            "--margin",
            metavar="PERCENT",
            min=1,
            max=99,
            help="Count a group as slow if it is this much slower than the fastest group of its size.",
        ),
    ] = 20.0
    over: Annotated[
        Literal["jax", "tcp"],
        typer.Option("--over", help="Test the devices (jax, through NCCL) or only the hosts' network (tcp)."),
    ] = "jax"
    num_bytes: Annotated[
        int, typer.Option("--bytes", metavar="N", min=1024, help="Set the size of each device's buffer.")
    ] = 64 << 20
    rehearse: Annotated[
        list[str] | None,
        value_option("--rehearse", REHEARSE, "NODE[,NODE]=SECONDS"),
    ] = None
    remote: RemoteOption = "aifx"
    json: JsonOption = False


@option_group
def bisect(*, options: BisectOptions) -> None:
    """Find the bad node or link with collective tests over halves of the nodes. The tests load them.

    Exit 0: no node or link is slow; 1: one is; 2: the tests were inconclusive, or could not run.

    Examples:
        aifx doctor bisect --hosts nodes.txt
        aifx doctor bisect --slurm --expect 350 --budget 600
        aifx doctor bisect --hosts nodes.txt --over tcp --rehearse n3=0.02
    """
    with terminal(options.json) as out:
        from aifx.verbs.health_fleet import doctor_bisect

        with interrupt_or_request() as stop:
            found = doctor_bisect(
                hosts=options.hosts,
                slurm=options.slurm,
                budget_s=options.budget,
                limit_s=options.limit,
                expected_gb_s=options.expect,
                margin=options.margin / 100,
                over=options.over,
                num_bytes=options.num_bytes,
                rehearse=options.rehearse or (),
                remote=options.remote,
                stop=stop,
            )
        out.result(found)
        if not out.json:
            from aifx.commands.doctor.report import show_findings

            show_search(out, found.result, found.num_nodes)
            show_findings(out, found.report.findings)
            if found.result.suspects:
                out.print(f"not cleared: {', '.join(found.result.suspects)}")


def collective_worker(request: str) -> None:
    """Run one rank of a collective test, which REQUEST describes. `aifx doctor bisect` starts this on each node."""
    from aifx.verbs.health_fleet import run_collective_rank

    raise SystemExit(run_collective_rank(request))


def show_search(out: Output, result: BisectResult, num_nodes: int) -> None:
    """Print how much was tested."""
    quiet = "" if result.findings() else "; no node or link is slow"
    out.print(f"{num_nodes} nodes: {result.num_tests} tests in {result.duration_s:.0f} s{quiet}")


NUM_SUSPECTS, NUM_GROUPS, NUM_NAMES = 10, 12, 8


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
        from aifx.verbs.health_fleet import doctor_fleet

        with interrupt_or_request() as stop:
            health = doctor_fleet(
                hosts=options.hosts,
                slurm=options.slurm,
                agents=options.agents or (),
                only=options.only or (),
                skip=options.skip or (),
                site=options.site,
                strict=options.strict,
                sample_s=options.sample,
                stress=options.stress.value if options.stress else None,
                bisect=options.bisect,
                budget_s=options.budget,
                timeout_s=options.timeout,
                at_once=options.at_once,
                remote=options.remote,
                token_file=options.token_file,
                insecure_token=options.insecure_token,
                tls_ca=options.tls_ca,
                record=options.record,
                replay=options.replay,
                html=options.html,
                stop=stop,
            )
        out.result(health)
        show_fleet(out, health.report)
        if health.search:
            out.print("")
            show_search(out, health.search, sum(node.report is not None for node in health.report.nodes))
        out.report(health.faults)


def show_fleet(out: Output, report: FleetReport) -> None:
    """Print a fleet's report on one screen: the suspects, and the most frequent findings. Nothing with --json."""
    if out.json:
        return
    from aifx.commands.doctor.report import show_rows
    from aifx.verbs.health_fleet import grouped

    _headline(out, report)
    if report.suspects:
        out.print("")
        first = report.suspects[:NUM_SUSPECTS]
        columns = ["suspect", "GPU-hours", "chance", "because"]
        out.table(columns, [_suspect(one) for one in first], right=["GPU-hours", "chance"], wrap=True)
        _more(out, len(report.suspects) - len(first), "suspect")
    groups = grouped(report)
    for group in groups[:NUM_GROUPS]:
        out.print("")
        show_rows(out, _block(group))
    _more(out, len(groups) - NUM_GROUPS, "finding")
    if report.unanswered:
        out.print("")
        out.print(f"ended early: {len(report.unanswered):,} nodes did not answer yet: {listed(report.unanswered)}")


def listed(names: Sequence[str]) -> str:
    """Return names as text, shortened."""
    more = f" and {len(names) - NUM_NAMES:,} more" if len(names) > NUM_NAMES else ""
    return ", ".join(names[:NUM_NAMES]) + more


def _headline(out: Output, report: FleetReport) -> None:
    from aifx.commands.doctor.report import show_status

    found = Counter(node.status for node in report.nodes)
    counts = ", ".join(f"{found[s]:,} {s}" for s in ("healthy", "warning", "unhealthy", "unknown") if found[s])
    number = len(report.nodes)
    details = f" ({counts or 'none answered'}; {report.duration_s:.1f} s)"
    show_status(out, f"{number:,} node{'s' * (number != 1)}: ", report.status, details)


def _suspect(suspect: Suspect) -> tuple[str, str, str, str]:
    because = suspect.causes[0]
    more = f" (+{len(suspect.causes) - 1})" if len(suspect.causes) > 1 else ""
    lost, chance = f"{suspect.lost_gpu_hours:,.1f}", f"{suspect.probability:.0%}"
    return suspect.node, lost, chance, f"{because.summary}{more}"


def _block(group: NodeGroup) -> list[Row]:
    from aifx.commands.doctor.report import STYLES, details

    finding, count = group.finding, len(group.nodes)
    nodes = f"{count:,} node{'s' * (count != 1)}: " if count else ""
    summary = finding.summary if group.is_alike or count < 2 else f"{finding.summary} (or the like)"
    rows = {
        "nodes": listed(group.nodes),
        "rule": finding.id,
        "seen": "" if finding.severity == "unknown" else finding.evidence,
        "do": finding.action,
    }
    return [(f"{finding.severity:10}", STYLES[finding.severity], nodes + summary, "bold"), *details(rows)]


def _more(out: Output, count: int, what: str) -> None:
    if count > 0:
        out.print(f"and {count:,} more {what}{'s' * (count != 1)}: --json has them all")
