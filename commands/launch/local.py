"""`aifx launch local`: start a command as several processes on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from aifx.commands.console.terminal import terminal
from aifx.commands.launch.running import CommandArgument, line_writer, write_answer
from aifx.core.lifecycle import collect_signals


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
