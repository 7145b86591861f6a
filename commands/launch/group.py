"""`aifx launch`: start a command as several processes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.core.errors import ExitCode, UsageError

app = typer.Typer(
    help="""Start a command as several processes.

    Examples:
        aifx launch local -n 2 train                 two processes on this machine
        aifx launch local -n 4 --restarts 3 train --run wide
    """
)

COMMANDS = ("train", "eval")
ALONE = ("predict", "generate")
UNSHOWN = ("AIFX_LAUNCHER", "GLIBC_TUNABLES")


@app.command(context_settings={"allow_interspersed_args": False})
def local(
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="Command of aifx with its options, such as train --run NAME."),
    ],
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
    arguments = command[1:] if command[0] == "--" else command
    if not arguments or arguments[0] not in COMMANDS:
        why = f"{' and '.join(COMMANDS)} run as several processes; other commands run as one, on all devices"
        alone = shlex.join(["aifx", *arguments]) if arguments and arguments[0] in ALONE else ""
        hint = alone or f"aifx launch local -n {num_processes} train"
        raise UsageError(f"{shlex.join(arguments[:1])!r} cannot be launched", why, hint)
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
    from aifx.cluster.local import Signals, last_lines, processes, run_once

    def write(index: int, line: bytes) -> None:
        out.log(f"[{index}] {line.decode('utf-8', 'replace').rstrip()}")

    with Signals() as signals:
        for restart in range(restarts + 1):
            attempt = run_once(processes(arguments, num_processes, os.environ), signals, write)
            if attempt.first is not None and attempt.code != ExitCode.VERDICT and not signals.came:
                ended = attempt.ended[attempt.first]
                lines, how = last_lines(ended), "it did not end with the others" if ended.cut else ended.how
                out.log(f"process {attempt.first} failed first: {how}{'; its last lines:' if lines else ''}")
                for line in lines:
                    out.log(f"    {line}")
            if attempt.code != ExitCode.PREEMPTED or signals.came or restart == restarts:
                break
            out.log(f"restart {restart + 1} of {restarts}")
    sys.stdout.flush()
    out.write(attempt.answer.decode("utf-8", "replace"), exact=True)
    return attempt.code
