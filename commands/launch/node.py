"""`aifx launch node`: start and supervise the processes of one machine of a job."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from aifx.commands.console.output import Output
from aifx.commands.console.terminal import terminal
from aifx.commands.launch.running import CommandArgument, command_to_start, run_attempt, write_answer
from aifx.core.errors import ExitCode
from aifx.core.lifecycle import collect_signals
from aifx.core.project import find_project


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
    arguments = command_to_start(command, f"aifx launch node -n {num_processes} train")
    with terminal() as out:
        code = _run(out, arguments, num_processes, launch)
    if code:
        raise SystemExit(code)


def _run(out: Output, arguments: Sequence[str], num_processes: int, launch: str | None) -> int:
    from aifx.cluster.local import processes
    from aifx.parallel.location import detect_here

    with collect_signals() as came:
        here = detect_here()
        rank = 0 if here is None else here.process_id
        os.environ["AIFX_NODES"] = "1" if here is None else str(here.num_processes)  # for `started_by`
        if launch is not None and rank == 0 and (stopped := _begin(arguments, launch)) is not None:
            return stopped
        started = processes(arguments, num_processes, os.environ, here)
        attempt = run_attempt(out, started, came, rank * num_processes, has_others=here is not None)
    if rank == 0:
        write_answer(out, attempt)
    return attempt.code


def _begin(arguments: Sequence[str], launch: str) -> int | None:
    """Note that the processes start. Returns an exit code instead if they must not: a signal came before them.

    Raises AifxError if the last starts brought the run no further.
    """
    from aifx.cluster.attempts import check_progress, newest_step
    from aifx.cluster.jobs import read_events
    from aifx.cluster.launched import make_folder
    from aifx.commands.launch.arguments import run_of
    from aifx.core.json_files import JsonLines

    project = find_project()
    folder = make_folder(project, launch)  # Kubernetes makes none
    events = read_events(folder)
    begun = max((i for i, event in enumerate(events) if event.get("event") == "begin"), default=0)
    signals = [event.get("signal") for event in events[begun:] if event.get("event") == "signal"]
    if signals:
        return int(ExitCode.INTERRUPTED if signals[-1] == "INT" else ExitCode.PREEMPTED)
    step = 0
    if arguments[0] == "train":
        run = project.run(run_of(arguments))
        check_progress(run, [e["step"] for e in events if e.get("event") == "start" and isinstance(e.get("step"), int)])
        step = newest_step(run)
    lines = JsonLines(folder / "events.jsonl")
    lines.append({"time": time.time(), "event": "start", "step": step, "host": socket.gethostname()})
    lines.close()
    return None
