"""The frame of every command: its output, and its end.

    def ls(json: JsonOption = False) -> None:
        with terminal(json) as out:
            ...
            found = runs_ls()                       # a verb
            out.result(found)                       # programs; nothing without --json. Also the exit code of a verdict
            out.table(["run", "step"], rows)        # people; nothing with --json

The answer goes to stdout, everything else to stderr (`out.log`, `out.err`). A failure is raised as an `AifxError`.
Nothing here imports more than it needs: `aifx --help` must be quick.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

from aifx.commands.console.failures import as_error, is_of_typer, print_traceback, write_error_file
from aifx.commands.console.output import Output
from aifx.commands.console.progress import ProgressDisplay
from aifx.commands.console.writing import failure_text, is_colored, to_json, write_all
from aifx.core import lifecycle
from aifx.core.errors import ExitCode
from aifx.core.logs import log_lines, python_warnings
from aifx.core.progress import listen
from aifx.core.results import SCHEMA_VERSION


@contextmanager
def terminal(json: bool = False, *, streams: bool = False) -> Iterator[Output]:
    """Run a command's body and turn whatever it raises into an exit code (docs/exit-codes.md).

    Args:
        streams: the answer is what the command passes to `out.write`, and nothing else is on stdout.
    """
    out = Output(json)
    try:
        # What user code prints is not part of the answer.
        with (
            log_lines(out.log, propagate=False),
            python_warnings(out.log),
            listen(ProgressDisplay(out)),
            redirect_stdout(sys.stderr) if json or streams else nullcontext(),
        ):
            lifecycle.run_body()
            yield out
            lifecycle.end_body()
        out.flush()
    except SystemExit:
        lifecycle.end_body()
        out.flush()
        raise
    except BaseException as error:
        lifecycle.end_body()
        raise SystemExit(report(lifecycle.cause_of(error), json=json)) from None
    if out.exit_code != ExitCode.OK:
        raise SystemExit(out.exit_code)


def report(error: BaseException, *, json: bool) -> int:
    """Report a failure and return its exit code: three lines on stderr, or with `json` one document on stdout."""
    if isinstance(error, BrokenPipeError) and _reader_has_gone():
        return ExitCode.OK  # it has read enough, as `head` does: nothing to report, and to nobody
    if is_of_typer(error) and type(error).__name__ == "Exit" and (code := getattr(error, "exit_code", None)):
        return int(code)
    print_traceback(error)
    failure = as_error(error)
    write_error_file(failure)
    if json and write_all(sys.stdout, to_json({"schema_version": SCHEMA_VERSION, "error": failure.document()}) + "\n"):
        return int(failure.exit_code)
    write_all(sys.stderr, failure_text(failure, colored=is_colored(sys.stderr)))
    return int(failure.exit_code)


def _reader_has_gone() -> bool:
    """Return whether stdout is broken, and not another pipe of aifx."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(flags & (select.POLLERR | select.POLLHUP) for _, flags in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll here, or no file behind stdout
        return True
