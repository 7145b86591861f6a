"""`aifx doctor slurm`: what Slurm runs on a node, from time to time and before each job (docs/doctor-slurm.md)."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.app import Command, Group
from aifx.commands.console.options import DryRunOption
from aifx.commands.console.terminal import Output
from aifx.commands.doctor.monitor_protocols import ProtocolExit, log
from aifx.commands.doctor.options import OnlyOption, ReplayOption, RootOption, SiteOption, SkipOption
from aifx.core.sanitize import one_line

if TYPE_CHECKING:
    from aifx.health.slurm import Verdict

PROLOG_UNHEALTHY = 10
"""What neither Python nor a shell ends with by itself, so that a script can tell our verdict from our failure."""

LEFT_OUT = ("jax", "project")
"""Families that start programs on devices which a job may be using, or are about a folder: only where --only asks."""

slurm = typer.Typer(
    name="slurm",
    cls=Group,
    help="""Drain an unhealthy node, or keep jobs off it: for Slurm's HealthCheckProgram and Prolog.

    Examples:
        aifx doctor slurm health-check --dry-run
        aifx doctor slurm prolog --dry-run
    """,
)


@slurm.command("health-check", cls=Command)
def health_check(
    only: OnlyOption = None,
    skip: SkipOption = None,
    site: SiteOption = None,
    node: Annotated[
        str | None,
        typer.Option("--node", help="The node's name; else $SLURMD_NODENAME, else the host's.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Undo a drain of aifx's when its rule is right again.")] = (
        False
    ),
    limit: Annotated[float, typer.Option("--limit", metavar="SECONDS", min=12, max=55, help="For all of it.")] = 30.0,
    root: RootOption = None,
    replay: ReplayOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Drain this node when it is unhealthy: for Slurm's HealthCheckProgram.

    A drain that others have set is left alone. Exit 0 whatever happens; failures go to stderr and the system's log.

    Examples:
        aifx doctor slurm health-check --dry-run
        aifx doctor slurm health-check --only nvidia --resume
    """
    from aifx.health.slurm import SCONTROL_LIMIT_S, scontrol, show, step_for

    out, name = Output(), node or node_name()
    verdict = _look(limit - 2 * SCONTROL_LIMIT_S, only, skip, site, root, replay)
    if verdict.status != "unhealthy" and not resume:  # slurmctld is not asked for what would change nothing
        out.print(f"{name}: {verdict.status}, nothing done")
        return
    step = step_for(verdict, show(name), may_resume=resume)
    arguments = step.arguments(name)
    would = "would be: " if dry_run and arguments else ""
    told = one_line(f"{name}: {would}{step.action}: {step.why}")
    if arguments and not dry_run:
        scontrol(arguments)
        log(f"aifx doctor slurm: {told}")
    out.print(told)


@slurm.command("prolog", cls=Command)
def prolog(
    only: OnlyOption = None,
    skip: SkipOption = None,
    site: SiteOption = None,
    limit: Annotated[float, typer.Option("--limit", metavar="SECONDS", min=1, max=55, help="For all of it.")] = 8.0,
    root: RootOption = None,
    replay: ReplayOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Keep a job off this node when it is unhealthy: for Slurm's Prolog.

    Exit 10: unhealthy, so that Slurm drains the node and requeues the job; 0: everything else, our failures too.

    Examples:
        aifx doctor slurm prolog --only nvidia
        aifx doctor slurm prolog --dry-run
    """
    verdict = _look(limit, only, skip, site, root, replay)
    out, name = Output(), node_name()
    if verdict.status != "unhealthy":
        out.print(f"{name}: {verdict.status}")
        return
    told = one_line(f"{name}: {'would be kept off: ' if dry_run else ''}{verdict.reason}")
    out.print(told)
    if dry_run:
        return
    log(f"aifx doctor slurm: {told}", is_error=True)
    raise ProtocolExit(PROLOG_UNHEALTHY)


def node_name() -> str:
    """This node's name with Slurm: what slurmd says, else the host's name up to the first dot."""
    return os.environ.get("SLURMD_NODENAME") or platform.node().split(".")[0]


def _look(
    limit_s: float,
    only: list[str] | None,
    skip: list[str] | None,
    site: Path | None,
    root: Path | None,
    replay: Path | None,
) -> Verdict:
    """The verdict. Raises EnvironmentFault where there is none within the limit."""
    began = time.monotonic()
    from aifx.health.isolated_check import Asked, run_isolated_check
    from aifx.health.slurm import verdict_of

    paths = [str(path) if path else None for path in (site, root, replay)]
    asked = Asked(tuple(only or ()), tuple(skip or ()), LEFT_OUT, *paths)
    return verdict_of(*run_isolated_check(asked, limit_s - (time.monotonic() - began)))
