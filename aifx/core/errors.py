"""Errors, each reported in three lines: what failed, why, and what to type next.

Exit codes are part of the interface (docs/exit-codes.md): scripts branch on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import TypedDict


class ExitCode(IntEnum):
    """The exit code of a command."""

    OK = 0
    VERDICT = 1  # it ran to its end and the verdict is bad: failed gate, divergence, unhealthy node
    UNABLE = 2  # it could not run or finish: usage, configuration, environment, out of memory, disk full
    BUG = 70  # ours (EX_SOFTWARE of sysexits.h)
    PREEMPTED = 75  # stopped from outside; run it again (EX_TEMPFAIL of sysexits.h)
    INTERRUPTED = 130  # 128 + SIGINT


class ErrorDocument(TypedDict):
    """A failure in JSON; `why` and `hint` can be empty."""

    what: str
    why: str
    hint: str
    exit_code: int


class AifxError(Exception):
    """A failure with a name, a reason and a way out.

    Args:
        what: the thing that failed, naming the file, key or run.
        why: the reason, one line.
        hint: a command to run or an edit to make; empty if there is none.
    """

    exit_code: ExitCode = ExitCode.UNABLE

    def __init__(self, what: str, why: str = "", hint: str = "", *, exit_code: ExitCode | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def document(self) -> ErrorDocument:
        return {"what": self.what, "why": self.why, "hint": self.hint, "exit_code": int(self.exit_code)}

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.why, self.hint and f"hint: {self.hint}") if line)


class UsageError(AifxError):
    """The command line or a call asks for something that does not exist."""


class ConfigError(AifxError):
    """`aifx.toml`, an `AIFX_` variable or a `--set` holds something that cannot be used."""


class DataError(AifxError):
    """A data file cannot be used; `what` names it."""


class CheckpointError(AifxError):
    """A checkpoint is missing, damaged or does not fit the model."""


class EnvironmentFault(AifxError):
    """The machine lacks something: a device, room on the disk, a package."""


class RunBusy(AifxError):
    """Another process holds the run."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, to a command that it ends as Ctrl-C does."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most likely meant, or None."""
    import difflib

    by_lower = {name.lower(): name for name in known}
    return next((by_lower[name] for name in difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.55)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?", or the list of known words if none is near."""
    choices = sorted(known)
    if (match := nearest(word, choices)) is not None:
        return f"did you mean {match!r}?"
    return f"one of: {', '.join(choices)}" if choices else ""
