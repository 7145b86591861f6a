"""Commands that read a run, in a job of several processes: some compute together, the others run as one process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from aifx.commands.console.output import Output
from aifx.commands.console.terminal import report
from aifx.core.errors import UsageError
from aifx.core.lifecycle import exit_now
from aifx.core.logs import at_level
from aifx.core.progress import listen
from aifx.core.project import Project, RunDirectory


@contextmanager
def joined_command(
    command: str, out: Output, run: RunDirectory, project: Project, overrides: Sequence[str], **asked: Any
) -> Iterator[bool]:
    """Join the job that this process is one of, and compare what the processes were asked for.

    Yields whether this process gives the answer: the only one, or process 0. The others write nothing but errors.

    Args:
        asked: arguments of the command, as JSON.

    Raises Disagreement, EnvironmentFault; PeerLost if another process is gone.
    """
    from aifx.parallel.location import detect_here

    me = detect_here()
    if me is None:
        yield True
        return
    from aifx.kinds import read_config
    from aifx.parallel.group import Limits, PeerLost
    from aifx.parallel.joining import joined, restore_stdout
    from aifx.runs.agreement import agree, facts_of_start

    is_first = me.process_id == 0

    def end(lost: PeerLost) -> None:
        restore_stdout()
        with redirect_stdout(out.stdout):  # instead of `terminal`, which sends to stderr what user code prints
            report(lost, json=out.json and is_first)
        exit_now(lost.exit_code)

    config = read_config(run.config, project, overrides)
    with (
        # The first process alone answers.
        nullcontext() if is_first else at_level("aifx", logging.ERROR),
        nullcontext() if is_first else listen(_ignore),
        joined(Limits.of(config.processes), end) as group,
    ):
        agree(group, lambda: facts_of_start(config, run=run.name, **asked))
        group.mark(f"aifx {command}")
        yield is_first


def refuse_job(command: str) -> None:
    """Raise UsageError in a process of a job of several, each of which would do the whole work."""
    from aifx.parallel.location import detect_here

    if (me := detect_here()) is None:
        return
    what = f"aifx {command} runs as one process"
    why = f"this is process {me.process_id} of {me.num_processes} ({me.source}), and each would do the whole work"
    raise UsageError(what, why, f"start it once, as with srun --ntasks=1 aifx {command} ...")


def _ignore(_: object) -> None:
    """One process of a job shows its progress."""
