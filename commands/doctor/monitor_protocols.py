"""Programs that call aifx and define their own exit codes: Nagios, node-problem-detector, Slurm.

The exit codes of aifx (docs/exit-codes.md) would mislead them: Nagios reads 2 as CRITICAL, and a prolog that ends with
anything but 0 drains the node. `main` uses this module to report usage errors and bugs in the caller's way too. It
imports little.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from aifx.commands.console.failures import as_error, print_traceback
from aifx.core.sanitize import one_line

NPD_LENGTH = 80
"""Bytes of a message of node-problem-detector: the default of max_output_length (docs/custom_plugin_monitor.md)."""


LOG_LIMIT_S = 1.0
"""A system's log that hangs must not block the check."""


class ProtocolExit(SystemExit):
    """The end of a command that has printed its verdict, with the exit code of the calling program."""


@dataclass(frozen=True)
class Caller:
    """The exit code of a caller if there is no verdict, and how the reason is printed for it."""

    unable: int
    write: Callable[[str], None]

    def fail(self, error: BaseException) -> int:
        """Report a failure of aifx and return its exit code. Raises nothing."""
        with suppress(BaseException):
            print_traceback(error)
        text = f"{type(error).__name__}: {error}"
        with suppress(BaseException):
            failure = as_error(error)
            text = f"{failure.what}: {failure.why}" if failure.why else failure.what
        with suppress(BaseException):
            self.write(one_line(text))
        return self.unable


def caller_of(args: Sequence[str]) -> Caller | None:
    """Return the program that calls with these arguments; None for a person or a script."""
    words = [arg for arg in args if arg != "--debug"]
    if words[:1] != ["doctor"]:
        return None
    if words[1:2] == ["slurm"] or ("slurm" in words and {"prolog", "health-check"}.intersection(words)):
        return SLURM
    for option, value in zip(words, [*words[1:], ""], strict=True):
        name = option.removeprefix("--format=") if option.startswith("--format=") else value
        if option.startswith("--format") and name in FORMATS:
            return FORMATS[name]
    return None


def cut(text: str, num_bytes: int, end: str = "") -> str:
    """Return `text` and `end` in at most `num_bytes` bytes of UTF-8, with `text` shortened."""
    room = num_bytes - len(end.encode())
    whole = text.encode("utf-8", "replace")
    if len(whole) > room:
        text = whole[: max(room - 3, 0)].decode("utf-8", "ignore").rstrip() + "..."
    return text + end


def log(text: str, *, is_error: bool = False) -> None:
    """Write a line to the system's log, if there is one: Slurm normally drops the stdout of its scripts."""
    import syslog
    import threading

    priority = syslog.LOG_DAEMON | (syslog.LOG_ERR if is_error else syslog.LOG_NOTICE)

    def write() -> None:
        with suppress(Exception):
            syslog.syslog(priority, text)

    with suppress(Exception):
        writing = threading.Thread(target=write, name="syslog", daemon=True)
        writing.start()
        writing.join(LOG_LIMIT_S)


def _write_nagios(text: str) -> None:
    sys.stdout.write(f"AIFX UNKNOWN - {cut(text.replace('|', '/'), 400)}\n")


def _write_npd(text: str) -> None:
    sys.stdout.write(cut(f"aifx: {text}", NPD_LENGTH) + "\n")


def _write_slurm(text: str) -> None:
    log(f"aifx doctor slurm: {text}", is_error=True)
    sys.stderr.write(f"aifx doctor slurm: {text}\n")


SLURM = Caller(0, _write_slurm)
FORMATS = {"nagios": Caller(3, _write_nagios), "npd": Caller(2, _write_npd)}
