"""The commands below `aifx launch`."""

from __future__ import annotations

import typer

from aifx.commands.launch.following import logs, ls, stop
from aifx.commands.launch.k8s import k8s
from aifx.commands.launch.local import local
from aifx.commands.launch.node import node
from aifx.commands.launch.running import OPTIONS_FIRST
from aifx.commands.launch.slurm import slurm

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
