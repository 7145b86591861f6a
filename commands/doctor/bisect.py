"""`aifx doctor bisect`: the bad node or link, found with collective tests over halves."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from aifx.commands.console.options import JsonOption
from aifx.commands.console.stopping import sigterm_as_ctrl_c
from aifx.commands.console.terminal import Output, terminal
from aifx.commands.doctor.options import exit_code
from aifx.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from aifx.health.bisect import BisectResult
    from aifx.health.collective_launch import Options
    from aifx.health.fleet.report import Node

BUDGET_S = 900.0
FORM = "aifx doctor bisect --rehearse n3=0.02, or n1,n5=0.02 for a link"


class Over(Enum):
    """What carries the collectives."""

    JAX = "jax"
    TCP = "tcp"


def bisect(
    hosts: Annotated[
        Path | None,
        typer.Option("--hosts", metavar="FILE", help="The nodes, one a line, over ssh.", show_default=False),
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="The nodes of this Slurm allocation, with srun.")] = False,
    budget: Annotated[float, typer.Option("--budget", metavar="SECONDS", min=0, help="Time for the whole.")] = BUDGET_S,
    limit: Annotated[float, typer.Option("--limit", metavar="SECONDS", min=1, help="Time for a test.")] = 120.0,
    expect: Annotated[
        float,
        typer.Option(
            "--expect", metavar="GB_S", min=0, help="Bus bandwidth that all together should reach; 0: unknown."
        ),
    ] = 0.0,
    margin: Annotated[
        float, typer.Option("--margin", metavar="PERCENT", min=1, max=99, help="How much slower than its like is slow.")
    ] = 20.0,
    over: Annotated[
        Over, typer.Option("--over", help="jax: the devices, through NCCL; tcp: the hosts alone.")
    ] = Over.JAX,
    num_bytes: Annotated[
        int, typer.Option("--bytes", metavar="N", min=1024, help="Each device's buffer, or each host's with tcp.")
    ] = 64 << 20,
    rehearse: Annotated[
        list[str] | None,
        typer.Option(
            "--rehearse",
            metavar="NODE[,NODE]=SECONDS",
            help="Slow a node, or a link, so much a message, to see that it is found. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    remote: Annotated[
        str, typer.Option("--remote", metavar="COMMAND", help="How aifx is called on the nodes.")
    ] = "aifx",
    json: JsonOption = False,
) -> None:
    """Find the bad node or link with collective tests over halves of the nodes. It loads what it tests.

    Exit 0: nothing sticks out; 1: something was found; 2: it could not be told, or not run.

    Examples:
        aifx doctor bisect --hosts nodes.txt
        aifx doctor bisect --slurm --expect 350 --budget 600
        aifx doctor bisect --hosts nodes.txt --over tcp --rehearse n3=0.02
    """
    with terminal(json) as out:
        from aifx.health.collective_launch import Options

        nodes = _nodes(hosts, slurm)
        faults = _faults(rehearse or (), nodes, over)
        options = Options(_program(remote), over.value, num_bytes=num_bytes, limit_s=limit, faults=faults)
        result, ended = _search(out, nodes, slurm, options, budget, expect, margin / 100)
        _answer(out, result, len(nodes), ended)


def bisect_fleet(
    out: Output, nodes: Sequence[Node], *, over_slurm: bool, remote: str, budget_s: float
) -> tuple[BisectResult, ExitCode]:
    """What sticks out among the nodes that sent a report: through JAX where any shows a GPU, else among the hosts. The
    code is that of what ended it."""
    from aifx.health.bisect import BisectResult
    from aifx.health.collective_launch import Options
    from aifx.health.fleet.rank import gpus_of

    names = [node.name for node in nodes if node.report is not None]
    if len(names) < 2:
        return BisectResult((), tuple(names), "unclear", "fewer than two nodes sent a report", (), 0.0), ExitCode.OK
    over = "jax" if any(map(gpus_of, nodes)) else "tcp"
    return _search(out, names, over_slurm, Options(_program(remote), over), budget_s)


def _program(remote: str) -> tuple[str, ...]:
    import shlex

    return (*shlex.split(remote), "doctor", "collective-worker")


def _search(
    out: Output,
    nodes: Sequence[str],
    over_slurm: bool,
    options: Options,
    budget_s: float,
    expected_gb_s: float = 0.0,
    margin: float | None = None,
) -> tuple[BisectResult, ExitCode]:
    """Ctrl-C and SIGTERM end it, with what was found until then and the code for that."""
    from aifx.health import bisect as library
    from aifx.health import collective_launch as launch

    run = launch.over_slurm if over_slurm else launch.over_ssh
    with sigterm_as_ctrl_c() as stop:
        result = library.bisect(
            nodes,
            lambda group, limit_s: run(group, limit_s, options),
            budget_s,
            out.say,
            expected_gb_s=expected_gb_s,
            margin=library.MARGIN if margin is None else margin,
        )
    return result, stop.code if result.why == "interrupted" else ExitCode.OK


def collective_worker(ctx: typer.Context) -> None:
    """Run one rank of a collective test: what `aifx doctor bisect` starts on each node.

    Examples:
        aifx doctor collective-worker --rank 0 --size 2 --coordinator n1:29400
    """
    from aifx.health.collective_worker import main

    raise SystemExit(main(ctx.args))


def _nodes(hosts: Path | None, slurm: bool) -> list[str]:
    from aifx.health.fleet.hosts import is_address, read_hosts, slurm_hosts

    if slurm == (hosts is not None):
        raise UsageError("the nodes come from --hosts or from --slurm", "one of them", "aifx doctor bisect --help")
    nodes = slurm_hosts() if hosts is None else read_hosts(hosts)
    if addresses := [node for node in nodes if is_address(node)]:
        why = "agents report and run nothing"
        raise UsageError(f"{addresses[0]} cannot be tested", why, "name its host, for ssh")
    if len(nodes) < 2:
        raise UsageError(f"{nodes[0]} is alone", "a collective needs two nodes", "aifx doctor --stress quick")
    return nodes


def _faults(asked: Sequence[str], nodes: Sequence[str], over: Over) -> dict[tuple[str, ...], float]:
    found = {}
    for text in asked:
        names, _, seconds = text.rpartition("=")
        group = tuple(names.split(","))
        if not names or len(group) > 2 or set(group) - set(nodes):
            raise UsageError(f"--rehearse {text} names no node or link", f"the nodes are {', '.join(nodes[:8])}", FORM)
        if len(group) == 2 and over is Over.JAX:
            raise UsageError(f"--rehearse {text} slows a link", "through jax only a node can be slowed", "--over tcp")
        try:
            found[group] = float(seconds)
        except ValueError:
            raise UsageError(f"--rehearse {text} names no time", f"{seconds!r} is no number", FORM) from None
    return found


def _answer(out: Output, result: BisectResult, num_nodes: int, ended: ExitCode) -> NoReturn:
    from dataclasses import asdict

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
    """How much was tried, on stdout."""
    quiet = "" if result.findings() else "; nothing sticks out"
    out.print(f"{num_nodes} nodes: {result.num_tests} tests in {result.duration_s:.0f} s{quiet}")
