"""The commands below `aifx doctor`. `node` runs if the command line names none (`aifx.commands.app.COMMANDS`)."""

from __future__ import annotations

import typer

from aifx.commands.doctor.bisect import bisect, collective_worker
from aifx.commands.doctor.diff import diff
from aifx.commands.doctor.fleet import fleet
from aifx.commands.doctor.node import node
from aifx.commands.doctor.rules import rules
from aifx.commands.doctor.serve import serve
from aifx.commands.doctor.slurm import slurm

app = typer.Typer(
    help="""Check the health of machines, and say what to do next.

    Without a command, `aifx doctor` runs `node`, which checks this machine: see `aifx doctor node --help`.

    Examples:
        aifx doctor                             check this machine
        aifx doctor --only nvidia --sample 10   its GPUs, with rates over 10 seconds
        aifx doctor fleet --hosts nodes.txt     check many nodes, rank the suspects
        aifx doctor rules nvidia.rows.pending   explain a rule
    """
)
for command in (node, fleet, bisect, serve, diff, rules):
    app.command()(command)
app.add_typer(slurm)
app.command(hidden=True)(collective_worker)
