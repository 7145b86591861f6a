"""`aifx launch local`: start a command as several processes on this machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Annotated

import typer

from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.launch.running import CommandArgument, command_to_start, run_attempt, write_answer
from aifx.core.errors import ExitCode
from aifx.core.lifecycle import collect_signals

UNSHOWN = ("AIFX_LAUNCHER", "GLIBC_TUNABLES")


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
    arguments = command_to_start(command, f"aifx launch local -n {num_processes} train")
    with terminal() as out:
        from aifx.cluster.local import processes

        if dry_run:
            for one in processes(arguments, num_processes, os.environ):
                variables = " ".join(f"{name}={value}" for name, value in one.variables.items() if name not in UNSHOWN)
                out.print(f"{variables} {shlex.join(['aifx', *arguments])}")
            return
        code = _run(out, arguments, num_processes, restarts)
    if code:
        raise SystemExit(code)


def _run(out: Output, arguments: Sequence[str], num_processes: int, restarts: int) -> int:
    """Run the processes, again if they were preempted. Returns the exit code of the last attempt."""
    from aifx.cluster.local import processes

    with collect_signals() as came:
        for restart in range(restarts + 1):
            attempt = run_attempt(out, processes(arguments, num_processes, os.environ), came)
            if attempt.code != ExitCode.PREEMPTED or came or restart == restarts:
                break
            out.log(f"restart {restart + 1} of {restarts}")
    write_answer(out, attempt)
    return attempt.code
