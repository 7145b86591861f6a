"""`aifx launch k8s`: a command as a JobSet of Kubernetes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.options import SetOption, option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.launch.arguments import check_command, overrides_of, run_of
from aifx.commands.launch.following import follow_job
from aifx.commands.launch.running import CommandArgument, command_to_start
from aifx.core.project import Project, find_project

if TYPE_CHECKING:
    from aifx.cluster.jobs import LaunchRecord
    from aifx.config import Config


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
        from aifx.cluster.jobset import render
        from aifx.core.yaml_text import to_yaml

        arguments = command_to_start(command, "aifx launch k8s train")
        project = find_project()
        # The runs are on a volume of the cluster, so a run to measure need not be here.
        run = check_command(arguments, project) if arguments[0] == "train" else run_of(arguments)
        config = _config(project, given, set_ or (), arguments)
        jobset = render(config, name if name is not None else run or "main", arguments)
        text = to_yaml(jobset)
        if not apply:
            out.write(text)
            return
        if dry_run:
            from aifx.cluster.kubernetes import check

            check(text)
            out.print(f"Kubernetes takes JobSet {jobset['metadata']['name']}; nothing was created")
            return
        record = _submit(project, config.launch.processes_per_node, run, arguments, jobset, text)
        out.log(f"launch {record.id}: JobSet {record.job}")
        code = follow_job(out, project, record) if follow else 0
    if code:
        raise SystemExit(code)


def _config(
    project: Project, given: KubernetesOptions, overrides: list[str] | tuple[str, ...], arguments: list[str]
) -> Config:
    """The configuration with the settings of the command and the options. Raises ConfigError."""
    from aifx.kinds import load_config

    keys = {"launch": ("nodes", "gpus_per_node", "image"), "k8s": ("namespace", "queue")}
    options = [
        f"{section}.{key}={json.dumps(value, ensure_ascii=False)}"
        for section, names in keys.items()
        for key in names
        if (value := getattr(given, key)) is not None
    ]
    return load_config(project, [*overrides_of(arguments), *overrides, *options])


def _submit(
    project: Project, processes_per_node: int, run: str, arguments: list[str], jobset: dict[str, Any], text: str
) -> LaunchRecord:
    """Hand a JobSet to Kubernetes, and keep a record of it."""
    from aifx.cluster.jobs import LaunchRecord
    from aifx.cluster.kubernetes import apply
    from aifx.cluster.launched import make_folder, new_id, write_record
    from aifx.core.json_files import write_text

    launch, metadata = new_id(run), jobset["metadata"]
    manifest = make_folder(project, launch) / "jobset.yaml"
    write_text(manifest, text)
    context, _, namespace = apply(manifest).rpartition("/")
    place = f"{context}/{metadata.get('namespace', namespace)}"
    pods = sum(job["replicas"] * job["template"]["spec"]["completions"] for job in jobset["spec"]["replicatedJobs"])
    record = LaunchRecord(
        launch,
        "kubernetes",
        metadata["name"],
        place,
        run,
        tuple(arguments),
        pods,
        processes_per_node,
        time.time(),
    )
    write_record(project, record)
    return record
