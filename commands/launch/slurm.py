"""`aifx launch slurm`: hand a command to Slurm, as a script, and follow the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.launch.following import follow_job
from aifx.commands.launch.running import CommandArgument, check_options, given_settings

SECTIONS = {
    "launch": ("nodes", "processes_per_node", "gpus_per_node", "image"),
    "slurm": ("account", "partition", "qos", "time_limit", "requeue", "setup_script"),
}
"""Settings that have an option."""


@dataclass(frozen=True)
class SlurmOptions:
    """Options in place of settings of `[launch]` and `[slurm]`."""

    nodes: Annotated[
        int | None, typer.Option("--nodes", "-N", metavar="N", help="Machines. By default launch.nodes.")
    ] = None
    processes_per_node: Annotated[
        int | None,
        typer.Option(
            "--processes-per-node", "-n", metavar="N", help="Processes on each. By default launch.processes_per_node."
        ),
    ] = None
    gpus_per_node: Annotated[
        int | None,
        typer.Option("--gpus-per-node", metavar="N", help="GPUs of each. By default launch.gpus_per_node."),
    ] = None
    account: Annotated[
        str | None, typer.Option("--account", "-A", metavar="NAME", help="Account. By default slurm.account.")
    ] = None
    partition: Annotated[
        str | None, typer.Option("--partition", "-p", metavar="NAME", help="Partition. By default slurm.partition.")
    ] = None
    qos: Annotated[
        str | None, typer.Option("--qos", "-q", metavar="NAME", help="Quality of service. By default slurm.qos.")
    ] = None
    time_limit: Annotated[
        str | None,
        typer.Option("--time", "-t", metavar="TIME", help="Limit, such as 2-12:00:00. By default slurm.time_limit."),
    ] = None
    requeue: Annotated[
        bool | None,
        typer.Option("--requeue/--no-requeue", help="Go back to the queue near the limit. By default slurm.requeue."),
    ] = None
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="Container image. By default launch.image.")
    ] = None
    setup_script: Annotated[
        str | None,
        typer.Option("--setup-script", metavar="FILE", help="Shell file read first. By default slurm.setup_script."),
    ] = None
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME[=VALUE]",
            help="Another option of sbatch, in addition to slurm.options. Can be repeated.",
        ),
    ] = None


@option_group
def slurm(
    command: CommandArgument,
    given: SlurmOptions,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show what the job writes until it is over.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and submit nothing.")] = False,
) -> None:
    """Submit a command to Slurm as a script for sbatch, and follow the job.

    The job checks its machines, then starts the command on all of them. After a loss it starts it again on the same
    machines. Ahead of the time limit, the run saves and the job goes back to the queue. Ctrl-C stops following, and
    the job goes on. The settings are those of [launch] and [slurm].

    Examples:
        aifx launch slurm -N 2 --gpus-per-node 8 -t 12:00:00 train --run wide
        aifx launch slurm --dry-run train
        aifx launch slurm -o constraint=a100 -o exclusive -- train --run wide
        aifx launch slurm --no-follow train && aifx launch logs --follow
    """
    with terminal() as out:
        from aifx.verbs.launching import launch_slurm, launch_slurm_script

        check_options(command)
        settings, more = given_settings(SECTIONS, given), given.options or ()
        if dry_run:
            out.write(launch_slurm_script(command, settings=settings, options=more))
            return
        record = launch_slurm(command, settings=settings, options=more)
        out.log(f"launch {record.id}: job {record.job}")
        if follow:
            follow_job(out, record.id)
