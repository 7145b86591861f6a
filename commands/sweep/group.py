"""The commands below `aifx sweep`. `start` runs if the command line names none (`aifx.commands.app.COMMANDS`)."""

from __future__ import annotations

import typer

from aifx.commands.sweep.command import show, start

app = typer.Typer(
    help="""Train with different settings, and rank them.

    Without a command, `aifx sweep` runs `start`: see `aifx sweep start --help`.

    Examples:
        aifx sweep --set optimizer.learning_rate=1e-3,3e-3 --set train.seed=0,1,2
        aifx sweep --name lr --sampler tpe --trials 40 \\
            --set optimizer.learning_rate=1e-4..1e-1:log
        aifx sweep show                  rank the settings so far
    """
)
for command in (start, show):
    app.command()(command)
