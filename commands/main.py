"""The `aifx` command: from its arguments to its exit code.

This module imports little and catches everything: Python's own exit 1 after an exception would read as a bad verdict.
"""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress

from aifx.commands.console.interrupted import write_interrupted
from aifx.core import lifecycle
from aifx.core.errors import ExitCode, Terminated
from aifx.verbs.process import ignore_compilers, leave_out_pandas, leave_out_plugins, restart_for_large_programs

TYPE_CHECKING = False  # importing typing takes as long as all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aifx.commands.doctor.monitor_protocols import Caller

COMPUTE = ("train", "eval", "predict", "score", "monitor", "generate", "serve")
"""Commands that run large programs, for whose memory a restart pays."""

ARROW = ("clean", "decontaminate", "dedupe", "split")
"""Commands of `aifx data` whose rows are in Arrow, and which run no code of users."""

QUICK = ("promote", "rollback")
"""Commands of `aifx registry` that run no code of users, and that somebody waits for."""

PLAIN = "aifx.plain"
"""The name under which Python's streams know `_plainly`."""

SPELT = {"µ": "u", "±": "+-", "…": "...", "—": "-", "–": "-", "×": "x", "\u202f": " ", "\xa0": " "}


def main() -> None:
    """Entry point of the console script."""
    args = sys.argv[1:]
    lifecycle.enter(lambda: answer_of_signals(args))
    ignore_compilers()
    if next((arg for arg in args if not arg.startswith("-")), None) in COMPUTE:
        restart_for_large_programs()
    if args[:1] == ["data"] and args[1:2] and args[1] in ARROW:
        leave_out_pandas()
    if args[:1] == ["registry"] and args[1:2] and args[1] in QUICK:
        leave_out_plugins()
    sys.exit(run(args))


def run(args: list[str]) -> int:
    """Runs one command and returns its exit code. Raises nothing. Ends a process of a job that has failed itself."""
    _prepare_streams()
    end = args.index("--") if "--" in args else len(args)
    ours, theirs = args[:end], args[end:]
    json, caller = "--json" in ours, find_caller(ours)
    if "--debug" in ours:
        os.environ["AIFX_DEBUG"] = "1"  # in processes that we start, too
        args = [arg for arg in ours if arg != "--debug"] + theirs
    try:
        from aifx.commands.app import run as run_command
        from aifx.commands.console.failures import take_error_file

        take_error_file()
        code = run_command(args)
        lifecycle.end_body()
    except SystemExit as error:
        lifecycle.end_body()
        code = _status(error)
        if caller is not None:
            from aifx.commands.doctor.monitor_protocols import ProtocolExit

            if isinstance(error, ProtocolExit):  # a code that the monitoring program understands
                return code if _flush(code) == code else caller.unable
    except BaseException as error:
        lifecycle.end_body()
        error = lifecycle.cause_of(error)
        code = _report(error, json) if caller is None else caller.fail(error)
    code = _flush(code)
    joining = sys.modules.get("aifx.parallel.joining")
    if joining is not None and joining.current_group().size > 1:  # Python's end would wait for the other processes
        lifecycle.exit_now(code)
    return code if caller is None or code == ExitCode.OK else caller.unable


def answer_of_signals(args: Sequence[str]) -> Callable[[int], int]:
    """The function that writes the answer of `aifx args` if a signal ends it first, and returns its exit code."""
    ours = args[: args.index("--")] if "--" in args else args
    caller, json = find_caller(ours), "--json" in ours

    def answer(signum: int) -> int:
        if caller is None:
            write_interrupted(signum, json=json)
            return lifecycle.exit_code_of(signum)
        code = caller.fail(Terminated())
        with suppress(Exception):
            sys.stdout.flush()
        return code

    return answer


def find_caller(args: Sequence[str]) -> Caller | None:
    """The monitoring program that calls `aifx doctor` with these arguments, if one does."""
    if "doctor" not in args:
        return None
    from aifx.commands.doctor.monitor_protocols import caller_of

    return caller_of(args)


def _report(error: BaseException, json: bool) -> int:
    """Tells a failure, even one whose telling fails."""
    from aifx.commands.console.terminal import report

    try:
        return report(error, json=json)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BaseException:
        return ExitCode.BUG


def _status(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return int(error.code or 0)
    from aifx.core.sanitize import escape_controls

    with suppress(BrokenPipeError):
        sys.stderr.write(f"{escape_controls(str(error.code))}\n")
    return ExitCode.UNABLE


def _prepare_streams() -> None:
    """Streams that are there and take any text, whatever the shell and its locale left us."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that a stream's encoding lacks by others: without UTF-8 a time is "4 us", not "4 \\xb5s"."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    plain = "".join(SPELT.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters)
    return plain, error.end


codecs.register_error(PLAIN, _plainly)


def _flush(code: int) -> int:
    """Writes what is still buffered, here, where a failure can be told: Python would exit 120 with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            with suppress(OSError, ValueError):
                devnull = os.open(os.devnull, os.O_WRONLY)
                os.dup2(devnull, stream.fileno())
                os.close(devnull)
                stream.flush()
            if not isinstance(error, (BrokenPipeError, ValueError)) and code in (ExitCode.OK, ExitCode.VERDICT):
                code = _report(error, False)
    return code


if __name__ == "__main__":
    main()
