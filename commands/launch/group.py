"""`aifx launch`: a command as several processes, on this machine, under Slurm or on Kubernetes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.format import date
from aifx.commands.console.options import JsonOption, RequestOption, SetOption, option_group
from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.lifecycle import collect_signals
from aifx.verbs.arguments import overrides
from aifx.verbs.completion import complete_launch

if TYPE_CHECKING:
    from aifx.verbs.launching import Ended, JobStatus, LaunchRecord


OPTIONS_FIRST = {"allow_interspersed_args": False}
"""Settings of a command that takes another one: everything after its name belongs to that one."""

CommandArgument = Annotated[
    list[str],
    typer.Argument(metavar="COMMAND", help="Command of aifx with its options, such as train --run NAME."),
]


def check_options(command: Sequence[str]) -> None:
    """Raise UsageError for options that a command does not have, before a queue waits for it."""
    from aifx.commands.app import app
    from aifx.commands.console.typer_internals import parse

    arguments = command[1:] if command[0] == "--" else command
    if arguments and arguments[0] in ("train", "eval") and "--help" not in arguments and "-h" not in arguments:
        parse(app, arguments)


def given_settings(section_keys: dict[str, tuple[str, ...]], given: object) -> dict[str, Any]:
    """The options that are given, as settings of these sections: `{"launch.nodes": 2}`."""
    return {
        f"{section}.{key}": value
        for section, keys in section_keys.items()
        for key in keys
        if (value := getattr(given, key)) is not None
    }


def line_writer(out: Output) -> Callable[[int, bytes], None]:
    """The function that shows a line of a process, with its number."""
    return lambda number, line: out.log(f"[{number}] {line.decode('utf-8', 'replace').rstrip()}")


def write_answer(out: Output, ended: Ended) -> None:
    """Write the answer of the first process to stdout, after what was logged, and end as the processes did."""
    sys.stdout.flush()
    out.write(ended.answer, exact=True)
    out.result(ended)


LaunchArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[LAUNCH]",
        help="Launch: its id, its run or its job. By default the newest.",
        autocompletion=complete_launch,
    ),
]


def ls(json: JsonOption = False) -> None:
    """List what was launched from this project, with the state of each job.

    Examples:
        aifx launch ls
        aifx launch ls --json
    """
    with terminal(json) as out:
        from aifx.verbs.launching import launch_ls

        found = launch_ls(on_error=lambda error: out.report([error]))
        out.result(found)
        rows = [
            (
                one.record.id,
                f"{one.record.backend} {one.record.job}",
                str(one.status),
                str(one.starts),
                date(one.record.time),
                " ".join(one.record.arguments),
            )
            for one in found.launches
        ]
        if rows:
            out.table(["launch", "job", "state", "starts", "launched", "command"], rows, right=["starts"])
        else:
            out.log("nothing was launched here")


def logs(
    launch: LaunchArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
) -> None:
    """Print what a job has written.

    Examples:
        aifx launch logs
        aifx launch logs wide --follow

    With --follow, exits as the job does.
    """
    with terminal() as out:
        from aifx.verbs.launching import launch_logs

        if follow:
            follow_job(out, launch)
        else:
            launch_logs(launch, on_line=lambda line: _write_line(out, line))


def stop(
    launch: LaunchArgument = None,
    now: Annotated[bool, typer.Option("--now", help="End the job without waiting for a checkpoint.")] = False,
) -> None:
    """Stop a job: its run saves a checkpoint, and the job does not go back to the queue.

    Examples:
        aifx launch stop
        aifx launch stop wide --now
    """
    with terminal() as out:
        from aifx.verbs.launching import launch_stop

        record = launch_stop(launch, now=now)
        out.print(f"launch {record.id}: job {record.job} is asked to stop")


def follow_job(out: Output, launch: str | None) -> None:
    """Show what a job writes and how it fares until it is over. The command ends as the job does."""
    from aifx.verbs.launching import launch_follow

    def on_status(record: LaunchRecord, status: JobStatus) -> None:
        out.log(f"job {record.job}: {status}")

    out.result(launch_follow(launch, on_line=lambda line: _write_line(out, line), on_status=on_status))


def _write_line(out: Output, line: bytes) -> None:
    out.print(line.decode("utf-8", "replace"))


def local(
    command: CommandArgument,
    num_processes: Annotated[
        int, typer.Option("--num-processes", "-n", metavar="N", min=1, help="Number of processes.")
    ] = 1,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts",
            metavar="K",
            min=0,
            help="Start all processes again after a loss or a preemption, K times at most.",
        ),
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")] = False,
) -> None:
    """Start a command as several processes on this machine, and supervise them.

    Each process gets its share of the GPUs. aifx prefixes what they write with their numbers, and writes the answer of
    process 0 to stdout. Ctrl-C and SIGTERM reach all of them. If one fails, all end, and aifx repeats the last lines of
    the first failure.

    Examples:
        aifx launch local -n 2 train
        aifx launch local -n 4 --restarts 3 train --run wide --set train.seed=1
        aifx launch local -n 2 -- train --json
        aifx launch local -n 2 eval --run wide
        aifx launch local -n 2 --dry-run train
    """
    with terminal() as out:
        from aifx.verbs.launching import launch_local, launch_local_plan

        if dry_run:
            for line in launch_local_plan(command, num_processes=num_processes):
                out.print(line)
            return
        with collect_signals() as came:
            ended = launch_local(
                command, num_processes=num_processes, restarts=restarts, on_line=line_writer(out), stop=came
            )
        write_answer(out, ended)


def node(
    command: CommandArgument,
    num_processes: Annotated[
        int, typer.Option("--num-processes", "-n", metavar="N", min=1, help="Number of processes on each machine.")
    ] = 1,
    launch: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Launch whose starts are counted, in runs/.launched.")
    ] = None,
) -> None:
    """Start and supervise the processes of one machine of a job, once on each machine.

    `aifx launch slurm` runs this by srun. The scheduler's variables say which machine of the job this is. If a process
    fails, those of this machine end, and so does this command: whoever started it starts all machines again.

    Examples:
        srun -N 4 --ntasks-per-node=1 --kill-on-bad-exit=1 aifx launch node -n 8 train --run wide
    """
    with terminal() as out:
        from aifx.verbs.launching import launch_node

        with collect_signals() as came:
            ended = launch_node(
                command, num_processes=num_processes, launch=launch, on_line=line_writer(out), stop=came
            )
        write_answer(out, ended)


K8S_SECTIONS = {"launch": ("nodes", "gpus_per_node", "image"), "k8s": ("namespace", "queue")}
"""Settings that have an option."""


@dataclass(frozen=True)
class KubernetesOptions:
    """Options in place of settings of `[launch]` and `[k8s]`."""

    nodes: Annotated[int | None, typer.Option("--nodes", "-N", metavar="N", help="Pods. By default launch.nodes.")] = (
        None
    )
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", metavar="N", help="GPUs of each. By default launch.gpus_per_node.")
    ] = None
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="Container image. By default launch.image.")
    ] = None
    namespace: Annotated[
        str | None, typer.Option("--namespace", metavar="NAME", help="Namespace. By default k8s.namespace.")
    ] = None
    queue: Annotated[
        str | None, typer.Option("--queue", metavar="NAME", help="Local queue of Kueue. By default k8s.queue.")
    ] = None


@option_group
def k8s(
    command: CommandArgument,
    given: KubernetesOptions,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the JobSet. By default the run's.")
    ] = None,
    set_: SetOption = None,
    apply: Annotated[bool, typer.Option("--apply", help="Hand the JobSet to Kubernetes by kubectl.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="With --apply: show what process 0 writes until the end.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --apply: let the API server check it, and create nothing.")
    ] = False,
    request: RequestOption = None,
) -> None:
    """Print a command as a JobSet of Kubernetes, or hand it to Kubernetes.

    Each pod checks its node with aifx doctor, then runs processes that share its devices. If a pod is evicted or lost,
    all of them start again. The settings are those of [launch] and [k8s].

    Examples:
        aifx launch k8s -N 4 --gpus-per-node 8 train --run wide > wide.yaml
        aifx launch k8s --apply --dry-run train --run wide
        aifx launch k8s --apply --queue research train --run wide
        aifx launch k8s --set k8s.tpu=tpu-v6e-slice --set k8s.tpu_topology=4x4 train
    """
    with terminal() as out:
        from aifx.verbs.launching import launch_k8s, launch_k8s_check, launch_k8s_manifest

        check_options(command)
        settings = [*(set_ or ()), *overrides(given_settings(K8S_SECTIONS, given))]
        if not apply:
            out.write(launch_k8s_manifest(command, name=name, settings=settings))
            return
        if dry_run:
            checked = launch_k8s_check(command, name=name, settings=settings)
            out.print(f"Kubernetes takes JobSet {checked}; nothing was created")
            return
        record = launch_k8s(command, name=name, settings=settings, request=request)
        out.log(f"launch {record.id}: JobSet {record.job}")
        if follow:
            follow_job(out, record.id)


SLURM_SECTIONS = {
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
    request: RequestOption = None,
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
        settings, more = given_settings(SLURM_SECTIONS, given), given.options or ()
        if dry_run:
            out.write(launch_slurm_script(command, settings=settings, options=more))
            return
        record = launch_slurm(command, settings=settings, options=more, request=request)
        out.log(f"launch {record.id}: job {record.job}")
        if follow:
            follow_job(out, record.id)


app = typer.Typer(
    help="""Start a command as several processes, here or on a cluster.

    Examples:
        aifx launch local -n 2 train                   two processes on this machine
        aifx launch local -n 4 --restarts 3 train --run wide
        aifx launch slurm -N 2 train --run wide        a job of two machines
        aifx launch k8s -N 2 train --run wide          print a JobSet of two pods
        aifx launch ls                                 what was launched on a cluster
    """
)
for command in (local, slurm, k8s, node):
    app.command(context_settings=OPTIONS_FIRST)(command)
for command in (ls, logs, stop):
    app.command()(command)
