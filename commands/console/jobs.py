"""Messages of commands that run in a job of several processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout

from aifx.commands.console.output import Output
from aifx.commands.console.terminal import report
from aifx.core.errors import AifxError
from aifx.verbs.jobs import is_first_of_job


def report_lost(out: Output) -> Callable[[AifxError], None]:
    """The function that reports that another process of the job is lost."""

    def write(lost: AifxError) -> None:
        with redirect_stdout(out.stdout):  # instead of `terminal`, which sends to stderr what user code prints
            report(lost, json=out.json and is_first_of_job())

    return write
