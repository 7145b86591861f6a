"""`aifx launch slurm`: hand a command to Slurm, as a script, and follow the job."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.launch.arguments import check_command
from aifx.commands.launch.following import follow_job
from aifx.commands.launch.running import CommandArgument, command_to_start
from aifx.core.errors import ConfigError
from aifx.core.json_files import write_text
from aifx.core.project import Project, find_project

if TYPE_CHECKING:
    from aifx.cluster.jobs import LaunchRecord
    from aifx.cluster.slurm_script import SlurmJob
    from aifx.config import Config


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
        from aifx.cluster.launched import folder_of, new_id
        from aifx.cluster.slurm_script import SlurmJob, render

        arguments = command_to_start(command, "aifx launch slurm train")
        project = find_project()
        config = _config(project, given)
        run = check_command(arguments, project)
        launch = new_id(run)
        folder = folder_of(project, launch).relative_to(project.root)
        job = SlurmJob(launch, project.root, folder, tuple(arguments), config.launch, config.slurm)
        script = render(job)
        if dry_run:
            out.write(script)
            return
        record = _submit(project, job, run, script)
        out.log(f"launch {launch}: job {record.job}")
        code = follow_job(out, project, record) if follow else 0
    if code:
        raise SystemExit(code)


def _config(project: Project, given: SlurmOptions) -> Config:
    """The configuration with the options in place of its settings. Raises ConfigError."""
    from aifx.config.checks import refuse_conflicts
    from aifx.kinds import load_config

    keys = {
        "launch": ("nodes", "processes_per_node", "gpus_per_node", "image"),
        "slurm": ("account", "partition", "qos", "time_limit", "requeue", "setup_script"),
    }
    overrides = [
        f"{section}.{name}={json.dumps(value, ensure_ascii=False)}"
        for section, names in keys.items()
        for name in names
        if (value := getattr(given, name)) is not None
    ]
    config = load_config(project, overrides)
    if given.options:
        more = [*config.slurm.options, *given.options]
        config = load_config(project, [*overrides, f"slurm.options={json.dumps(more, ensure_ascii=False)}"])
    refuse_conflicts(config, config.slurm.job_conflicts(config))
    setup = config.slurm.setup_script
    if setup and not (project.root / setup).is_file():
        why = f"there is no such file in {project.root}"
        raise ConfigError(f"slurm.setup_script = {setup!r} cannot be used", why, "aifx config keys slurm")
    return config


def _submit(project: Project, job: SlurmJob, run: str, script: str) -> LaunchRecord:
    """Hand the script to Slurm, and keep a record of it."""
    from aifx.cluster.jobs import LaunchRecord
    from aifx.cluster.launched import make_folder, write_record
    from aifx.cluster.slurm import submit

    path = make_folder(project, job.id) / "script.sh"
    write_text(path, script)
    number, place = submit(path, project.root)
    launch = job.launch
    sizes = launch.nodes, launch.processes_per_node
    record = LaunchRecord(job.id, "slurm", number, place, run, job.arguments, *sizes, time.time())
    write_record(project, record)
    return record
