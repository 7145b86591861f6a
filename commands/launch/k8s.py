"""`aifx launch k8s`: a command as a JobSet of Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from aifx.commands.console.options import SetOption, option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.launch.following import follow_job
from aifx.commands.launch.running import CommandArgument, check_options, given_settings
from aifx.verbs.arguments import overrides

SECTIONS = {"launch": ("nodes", "gpus_per_node", "image"), "k8s": ("namespace", "queue")}
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
        settings = [*(set_ or ()), *overrides(given_settings(SECTIONS, given))]
        if not apply:
            out.write(launch_k8s_manifest(command, name=name, settings=settings))
            return
        if dry_run:
            checked = launch_k8s_check(command, name=name, settings=settings)
            out.print(f"Kubernetes takes JobSet {checked}; nothing was created")
            return
        record = launch_k8s(command, name=name, settings=settings)
        out.log(f"launch {record.id}: JobSet {record.job}")
        if follow:
            follow_job(out, record.id)
