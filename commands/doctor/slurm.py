"""`aifx doctor slurm`: what Slurm runs on a node, periodically and before each job (docs/doctor-slurm.md)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import DryRunOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.typer_internals import Command, Group
from aifx.commands.doctor.monitor_protocols import ProtocolExit, log
from aifx.commands.doctor.options import OnlyOption, ReplayOption, RootOption, SiteOption, SkipOption
from aifx.core.sanitize import one_line

if TYPE_CHECKING:
    from aifx.health.slurm import Verdict

PROLOG_UNHEALTHY = 10
"""No exit code of Python or of a shell, so that a script can distinguish a verdict of aifx from a failure of aifx."""

slurm = typer.Typer(
    name="slurm",
    cls=Group,
    help="""Drain an unhealthy node, or keep jobs off it: for Slurm's HealthCheckProgram and Prolog.

    Examples:
        aifx doctor slurm health-check --dry-run
        aifx doctor slurm prolog --dry-run
    """,
)


@dataclass(frozen=True)
class SlurmOptions:
    """What is checked: options of both commands."""

    only: OnlyOption = None
    skip: SkipOption = None
    site: SiteOption = None
    root: RootOption = None
    replay: ReplayOption = None
    dry_run: DryRunOption = False


@slurm.command("health-check", cls=Command)
@option_group
def health_check(
    *,
    node: Annotated[
        str | None, typer.Option("--node", help="Name of the node. Default: $SLURMD_NODENAME, or the host.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Undo a drain by aifx if its rule passes again.")] = False,
    limit: Annotated[
        float, typer.Option("--limit", metavar="SECONDS", min=12, max=55, help="Limit the whole time.")
    ] = 30.0,
    options: SlurmOptions,
) -> None:
    """Drain this node if it is unhealthy: for Slurm's HealthCheckProgram.

    It leaves a drain that others have set. It always exits 0: failures go to stderr and the system's log.

    Examples:
        aifx doctor slurm health-check --dry-run
        aifx doctor slurm health-check --only nvidia --resume
    """
    verdict = _check(limit, options, reserve_slurm=True)
    from aifx.health.slurm import act, node_name

    name = node or node_name()
    step = act(verdict, name, may_resume=resume, dry_run=options.dry_run)
    changes = bool(step.change)
    text = one_line(f"{name}: {'would be: ' if options.dry_run and changes else ''}{step.action}: {step.why}")
    if changes and not options.dry_run:
        log(f"aifx doctor slurm: {text}")
    Output().print(text)


@slurm.command("prolog", cls=Command)
@option_group
def prolog(
    *,
    limit: Annotated[
        float, typer.Option("--limit", metavar="SECONDS", min=1, max=55, help="Limit the whole time.")
    ] = 8.0,
    options: SlurmOptions,
) -> None:
    """Keep a job off this node if it is unhealthy: for Slurm's Prolog.

    Exit 10: unhealthy, so that Slurm drains the node and requeues the job; 0: anything else, failures of aifx included.

    Examples:
        aifx doctor slurm prolog --only nvidia
        aifx doctor slurm prolog --dry-run
    """
    verdict = _check(limit, options)
    from aifx.health.slurm import node_name

    out, name = Output(), node_name()
    if verdict.status != "unhealthy":
        out.print(f"{name}: {verdict.status}")
        return
    text = one_line(f"{name}: {'would be kept off: ' if options.dry_run else ''}{verdict.reason}")
    out.print(text)
    if options.dry_run:
        return
    log(f"aifx doctor slurm: {text}", is_error=True)
    raise ProtocolExit(PROLOG_UNHEALTHY)


def _check(limit_s: float, options: SlurmOptions, *, reserve_slurm: bool = False) -> Verdict:
    """Return the verdict. The limit holds for imports too, and for what Slurm may then take to answer twice."""
    began = time.monotonic()
    from aifx.health.isolated_check import Asked, run_isolated_check
    from aifx.health.slurm import LEFT_OUT, SCONTROL_LIMIT_S, verdict_of

    paths = [str(path) if path else None for path in (options.site, options.root, options.replay)]
    asked = Asked(options.only or (), options.skip or (), LEFT_OUT, *paths)
    spent_s = time.monotonic() - began + (2 * SCONTROL_LIMIT_S if reserve_slurm else 0.0)
    return verdict_of(*run_isolated_check(asked, limit_s - spent_s))
