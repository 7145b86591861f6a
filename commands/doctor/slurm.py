"""`aifx doctor slurm`: what Slurm runs on a node, periodically and before each job (docs/doctor-slurm.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from aifx.commands.console.options import DryRunOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.typer_internals import Command, Group
from aifx.commands.doctor.monitor_protocols import ProtocolExit, log
from aifx.commands.doctor.options import OnlyOption, ReplayOption, RootOption, SiteOption, SkipOption
from aifx.core.sanitize import one_line

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
    """Options of both commands: the check and its input."""

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
    from aifx.verbs.health_slurm import doctor_slurm_health_check

    step = doctor_slurm_health_check(
        node=node,
        resume=resume,
        limit_s=limit,
        only=options.only or (),
        skip=options.skip or (),
        site=options.site,
        root=options.root,
        replay=options.replay,
        dry_run=options.dry_run,
    )
    would_be = "would be: " if options.dry_run and step.changes else ""
    text = one_line(f"{step.node}: {would_be}{step.action}: {step.why}")
    if step.changes and not options.dry_run:
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
    from aifx.verbs.health_slurm import doctor_slurm_prolog

    admission = doctor_slurm_prolog(
        limit_s=limit,
        only=options.only or (),
        skip=options.skip or (),
        site=options.site,
        root=options.root,
        replay=options.replay,
    )
    out, name = Output(), admission.node
    if not admission.exit_code:
        out.print(f"{name}: {admission.status}")
        return
    text = one_line(f"{name}: {'would be kept off: ' if options.dry_run else ''}{admission.reason}")
    out.print(text)
    if options.dry_run:
        return
    log(f"aifx doctor slurm: {text}", is_error=True)
    raise ProtocolExit(PROLOG_UNHEALTHY)
