"""`aifx doctor bisect`: the bad node or link, found with collective tests over halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aifx.commands.console.options import JsonOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.options import HostsOption, RemoteOption, SlurmOption, value_option
from aifx.core.lifecycle import SIGNALS, collect_signals

if TYPE_CHECKING:
    from aifx.verbs.health_fleet import BisectResult

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

        with collect_signals(SIGNALS) as stop:
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
