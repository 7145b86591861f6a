"""Verbs in a job of several processes: some compute together, the others run as one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from aifx.core.errors import AifxError, UsageError
from aifx.core.lifecycle import exit_now
from aifx.core.logs import at_level
from aifx.core.progress import listen
from aifx.core.project import Project, RunDirectory
from aifx.parallel.processes import AGAIN
from aifx.verbs.arguments import Settings, overrides

log = logging.getLogger(__name__)

OnLost = Callable[[AifxError], None]
"""Called if another process of the job is lost, before this one ends."""


def refuse_job(command: str) -> None:
    """Raise UsageError in a process of a job of several, each of which would do the whole work."""
    from aifx.parallel.processes import detect_here

    if (me := detect_here()) is None:
        return
    what = f"aifx {command} runs as one process"
    why = f"this is process {me.process_id} of {me.num_processes} ({me.source}), and each would do the whole work"
    raise UsageError(what, why, f"start it once, as with srun --ntasks=1 aifx {command} ...")


def is_first_of_job(*, warn_if_lone: bool = False) -> bool:
    """Whether this process gives the answer: the only one, or process 0 of its job.

    Args:
        warn_if_lone: log a warning if this process trains alone and should be one of several.
    """
    from aifx.parallel.processes import detect_here, lone_warning

    me = detect_here()
    if warn_if_lone and me is None and (warning := lone_warning(os.environ)) is not None:
        log.warning(warning)
    return me is None or me.process_id == 0


def started_by() -> list[str]:
    """The start of the command line that started this process: `aifx`, or `aifx launch local -n N`."""
    from aifx.parallel import processes

    return processes.started_by(os.environ)


@contextmanager
def joined_job(
    command: str, run: RunDirectory, project: Project, settings: Settings, on_lost: OnLost, **asked: Any
) -> Iterator[None]:
    """Join the job that this process is one of, and compare what the processes were asked for.

    All processes but the first log nothing but errors, and report no progress.

    Args:
        asked: arguments of the command, as JSON.

    Raises Disagreement, EnvironmentFault; PeerLost if another process is gone.
    """
    from aifx.parallel.processes import detect_here

    if (me := detect_here()) is None:
        yield
        return
    from aifx.kinds import read_config
    from aifx.parallel.group import Limits, PeerLost
    from aifx.parallel.joining import joined, restore_stdout
    from aifx.runs.agreement import agree, facts_of_start

    def end(lost: PeerLost) -> None:
        restore_stdout()
        on_lost(lost)
        exit_now(lost.exit_code)

    is_first = me.process_id == 0
    config = read_config(run.config, project, overrides(settings))
    with (
        nullcontext() if is_first else at_level("aifx", logging.ERROR),
        nullcontext() if is_first else listen(lambda _: None),
        joined(Limits.of(config.processes), end) as group,
    ):
        agree(group, lambda: facts_of_start(config, run=run.name, **asked))
        group.mark(f"aifx {command}")
        yield
