"""`aifx launch node`: start and supervise the processes of one machine of a job."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.terminal import terminal
from aifx.commands.launch.running import CommandArgument, line_writer, write_answer
from aifx.core.lifecycle import collect_signals


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
