"""`aifx doctor bisect`: the bad node or link, found with collective tests over halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from aifx.commands.console.options import JsonOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.options import HostsOption, RemoteOption, SlurmOption, exit_code, value_option
from aifx.core.errors import ExitCode, UsageError
from aifx.core.lifecycle import sigterm_as_ctrl_c

if TYPE_CHECKING:
    from aifx.health.bisect import BisectResult
    from aifx.health.collective_launch import Options
    from aifx.health.fleet.report import Node

BUDGET_S = 900.0
REHEARSE = "Delay each message of a node, or over a link, to see that it is found. Can be repeated."
FORM = "--rehearse n3=0.02, or n1,n5=0.02 for a link"


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
        from aifx.health.collective_launch import Options
        from aifx.health.fleet.ask import check_testable, find_targets, split_remote

        targets = find_targets(options.hosts, slurm=options.slurm)
        check_testable(targets)
        faults = _faults(options.rehearse or (), targets.all, options.over)
        program, size = split_remote(options.remote), options.num_bytes
        tests = Options(program, options.slurm, options.over, size, limit_s=options.limit, faults=faults)
        result, ended = _search(targets.all, tests, options.budget, options.expect, options.margin / 100)
        _answer(out, result, len(targets.all), ended)


def search_among(
    nodes: Sequence[Node], over_slurm: bool, remote: str, budget_s: float
) -> tuple[BisectResult, ExitCode]:
    """Search among the nodes that sent a report. Return also the code of a signal that ended the search."""
    from aifx.health.bisect import MARGIN, BisectResult
    from aifx.health.collective_launch import Options
    from aifx.health.fleet.ask import split_remote
    from aifx.health.fleet.rank import gpus_of

    names = [node.name for node in nodes if node.report is not None]
    if len(names) < 2:
        return BisectResult((), tuple(names), "unclear", "fewer than two nodes sent a report", (), 0.0), ExitCode.OK
    tests = Options(split_remote(remote), over_slurm, "jax" if any(map(gpus_of, nodes)) else "tcp")
    return _search(names, tests, budget_s, 0.0, MARGIN)


def _search(
    nodes: Sequence[str], tests: Options, budget_s: float, expected_gb_s: float, margin: float
) -> tuple[BisectResult, ExitCode]:
    """Search until Ctrl-C or SIGTERM at the latest. What it has found until then is kept."""
    from aifx.health import bisect
    from aifx.health.collective_launch import run_test

    test = partial(run_test, options=tests)
    with sigterm_as_ctrl_c() as stop:
        result = bisect.bisect(nodes, test, budget_s, expected_gb_s=expected_gb_s, margin=margin)
    return result, stop.code if result.why == "interrupted" else ExitCode.OK


def collective_worker(request: str) -> None:
    """Run one rank of a collective test, which REQUEST describes. `aifx doctor bisect` starts this on each node."""
    from aifx.health.collective_worker import main

    raise SystemExit(main(request))


def _faults(asked: Sequence[str], nodes: Sequence[str], over: str) -> dict[tuple[str, ...], float]:
    found = {}
    for text in asked:
        names, _, seconds = text.rpartition("=")
        group = tuple(names.split(","))
        if not names or len(group) > 2 or set(group) - set(nodes):
            why = f"the nodes are {', '.join(nodes[:8])}{', ...' if nodes[8:] else ''}"
            raise UsageError(f"--rehearse {text} does not name a node or link", why, FORM)
        if len(group) == 2 and over == "jax":
            raise UsageError(f"--rehearse {text} requires --over tcp", "through JAX only a node can be delayed", FORM)
        try:
            found[group] = float(seconds)
        except ValueError:
            raise UsageError(f"--rehearse {text} does not name a delay", f"{seconds!r} is not a number", FORM) from None
    return found


def _answer(out: Output, result: BisectResult, num_nodes: int, ended: ExitCode) -> NoReturn:
    from aifx.health.report import Report

    report = Report("", result.findings(), (), round(result.duration_s, 3))
    findings = [asdict(finding) for finding in report.findings]
    out.document({"status": report.status, "findings": findings, **result.document()})
    if not out.json:
        from aifx.commands.doctor.report import show_findings

        show_search(out, result, num_nodes)
        show_findings(out, report.findings)
        if result.suspects:
            out.print(f"not cleared: {', '.join(result.suspects)}")
    raise SystemExit(int(ended) or exit_code(report.status, strict=False))


def show_search(out: Output, result: BisectResult, num_nodes: int) -> None:
    """Print how much was tested."""
    quiet = "" if result.findings() else "; no node or link is slow"
    out.print(f"{num_nodes} nodes: {result.num_tests} tests in {result.duration_s:.0f} s{quiet}")
