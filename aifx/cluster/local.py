"""One command as several processes of this machine, which may be one of several: started and ended together.

A run that dies three times at the same place is not started a fourth time (`check_progress`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from aifx.checkpoint.manifest import read_checkpoint, step_directories
from aifx.core.artifact import damaged_files
from aifx.core.errors import AifxError, ExitCode, UsageError
from aifx.core.files import check_tree
from aifx.core.processes import Child, Ended, aifx_command, pump
from aifx.core.project import RunDirectory
from aifx.machine.huge_pages import with_huge_pages
from aifx.machine.present import nvidia_gpus
from aifx.parallel.connections import free_port
from aifx.parallel.processes import Membership

HOST = "127.0.0.1"
GRACE_S = 10.0
"""After a failure, the others have so long to end by themselves. They need less than a second as a rule."""

GRACE_OF_KILL_S = 1.0
"""The same after a kill, which others that have not met yet do not notice."""

KILL_S = 2.0
POLL_S = 0.1
LAST_LINES = 10

NOISE = "[Gloo] Rank "
"""Gloo announces each group of processes that it connects, past Python."""

Write = Callable[[int, bytes], None]
"""Called with the number of a process and a line that it wrote, without its end."""


@dataclass(frozen=True)
class Process:
    """One of the processes before its start: the command, and the variables that it gets in addition."""

    argv: Sequence[str]
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Attempt:
    """The end of the processes after one start.

    Attributes:
        code: of the whole: that of the first failure. A process that a signal killed counts as preempted.
        first: the number of the process that failed first; None if none did.
        answer: what process 0 wrote to stdout.
    """

    code: int
    first: int | None
    ended: tuple[Ended, ...]
    answer: bytes


def processes(
    arguments: Sequence[str], count: int, environ: Mapping[str, str], node: Membership | None = None
) -> list[Process]:
    """The `count` processes of `aifx arguments`: each with its number, and with its share of the GPUs.

    Args:
        node: the place of this machine among those of a job, each of which starts `count` processes; None for a job of
            this machine alone.

    Raises UsageError if the GPUs of this machine cannot be divided among them.
    """
    gpus = visible_gpus(environ)
    if len(gpus) % count:
        why = f"{len(gpus)} GPUs are visible, and each process takes the same number"
        raise UsageError(f"{count} processes cannot share the GPUs", why, f"aifx launch local -n {len(gpus)} ...")
    tunables = (with_huge_pages(environ) or {}).get("GLIBC_TUNABLES")  # so that no process starts itself again for them
    each, address = len(gpus) // count, f"{HOST}:{free_port(HOST)}" if node is None else node.coordinator
    first, nodes = (0, 1) if node is None else (node.process_id * count, node.num_processes)
    found = []
    for index in range(count):
        variables = {
            "AIFX_COORDINATOR": address,
            "AIFX_NUM_PROCESSES": str(nodes * count),
            "AIFX_PROCESS_ID": str(first + index),
            "AIFX_LAUNCHER": str(os.getpid()),
        }
        if tunables is not None:
            variables["GLIBC_TUNABLES"] = tunables
        if gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index * each : (index + 1) * each])
        found.append(Process(aifx_command(*arguments), variables))
    return found


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that a process with these variables sees, as CUDA_VISIBLE_DEVICES names them."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(nvidia_gpus())]
    return [name for name in named.split(",") if name]


def run_once(started: Sequence[Process], came: Sequence[int], write: Write) -> Attempt:
    """Run the processes until all have ended. When one fails, the others are ended if they don't end by themselves.

    Args:
        came: signals that have come (`collect_signals`). Those that come from now on go to the processes as well.
        write: called with what they write to stderr, and with what the others than process 0 write to stdout.
    """
    deadline, order, sent = float("inf"), list[int](), len(came)
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(one.argv, env={**os.environ, **one.variables}, grace_s=KILL_S)) for one in started
        ]
        while any(child.ended is None for child in children):
            pump(children, POLL_S)
            fresh = came[sent:]
            for number in fresh:
                for child in children:
                    child.send_signal(number)
                    child.send_signal(signal.SIGCONT)  # so that a stopped process hears it, as scancel and systemd do
            sent += len(fresh)
            for index, child in enumerate(children):
                for line in child.take_error_lines():
                    if not line.startswith(NOISE.encode()):
                        write(index, line)
                for line in child.take_lines() if index else ():  # the answer of process 0 is in its end
                    write(index, line)
                if child.ended is not None and index not in order:
                    order.append(index)
                    if not child.ended.succeeded:
                        grace_s = GRACE_S if child.ended.signal is None else GRACE_OF_KILL_S
                        deadline = min(deadline, time.monotonic() + grace_s)
            if time.monotonic() > deadline:
                break
    ended = tuple(child.wait() for child in children)
    order += [index for index in range(len(ended)) if index not in order]
    first = first_failure(order, ended)
    code = ExitCode.OK if first is None else ended_exit_code(ended[first])
    return Attempt(int(code), first, ended, ended[0].output)


def first_failure(order: Sequence[int], ended: Sequence[Ended]) -> int | None:
    """The process whose failure made the others end; None if all succeeded.

    In this order: a process that was killed; the last one that ended with a failure, since a failing process waits
    until the others know of it; one that is stopped or hangs, which has not ended when the others give it up.
    """
    killed = [index for index in order if ended[index].signal is not None and not ended[index].cut]
    failed = [index for index in order if ended[index].code not in (ExitCode.OK, ExitCode.PREEMPTED, None)]
    hung = [index for index in order if ended[index].cut]
    preempted = [index for index in order if ended[index].code == ExitCode.PREEMPTED]
    return next(iter([*killed, *reversed(failed), *hung, *preempted]), None)


def ended_exit_code(ended: Ended) -> int:
    """The exit code that the end of a process means. One that a signal killed can be started again."""
    return ExitCode.PREEMPTED if ended.code is None else ended.code


def last_lines(ended: Ended) -> list[str]:
    return [line for line in ended.last_lines if not line.startswith(NOISE)][-LAST_LINES:]


STARTS = 3


def newest_step(run: RunDirectory) -> int:
    """The step of the newest checkpoint, which is not read; 0 if there is none."""
    return max(step_directories(run.checkpoints), default=0)


def check_progress(run: RunDirectory, starts: Sequence[int]) -> None:
    """Raise AifxError if the last STARTS starts have not brought a newer checkpoint whose files are whole.

    Args:
        starts: the newest step at each start so far. Only as many starts make it read a checkpoint.
    """
    if len(starts) < STARTS:
        return
    before = starts[-STARTS]
    for step, folder in sorted(step_directories(run.checkpoints).items(), reverse=True):
        if step <= before:
            break
        try:
            check_tree(folder)
            artifact, _ = read_checkpoint(folder)
            if not damaged_files(folder, artifact):
                return
        except (OSError, AifxError):
            continue
    where = f"step {before}" if before else "its beginning"
    what = f"run {run.name} was started {STARTS} times from {where}, and saved no newer checkpoint"
    raise AifxError(what, "another start would most likely end as they did", f"read {run.log}; aifx doctor")
