"""Errors, each reported in three lines: what failed, why, and what to type next.

Exit codes are part of the interface (docs/exit-codes.md): scripts branch on them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, TypedDict

from aifx.core.os_errors import FULL, TRANSIENT, first_line, is_passing


class ExitCode(IntEnum):
    """The exit code of a command."""

    OK = 0
    VERDICT = 1  # it ran to its end and the verdict is bad: failed gate, divergence, unhealthy node
    UNABLE = 2  # it could not run or finish: usage, configuration, environment, out of memory, disk full
    BUG = 70  # ours (EX_SOFTWARE of sysexits.h)
    PREEMPTED = 75  # stopped from outside; run it again (EX_TEMPFAIL of sysexits.h)
    INTERRUPTED = 130  # 128 + SIGINT


class ErrorDocument(TypedDict):
    """A failure in JSON; `why` and `hint` can be empty.

    Attributes:
        transient: whether the same command may succeed later, with nothing changed: a fault of the network, a full
            disk, or something that another process holds.
    """

    what: str
    why: str
    hint: str
    exit_code: int
    transient: bool


class AifxError(Exception):
    """A failure with a name, a reason and a way out.

    Args:
        what: the thing that failed, naming the file, key or run.
        why: the reason, one line.
        hint: a command to run or an edit to make; empty if there is none.
        transient: whether the same command may succeed later; by default, what the exception that this one was raised
            for says (`os_errors.is_passing`).
    """

    exit_code: ExitCode = ExitCode.UNABLE
    _transient: bool | None = None

    def __init__(
        self,
        what: str,
        why: str = "",
        hint: str = "",
        *,
        exit_code: ExitCode | None = None,
        transient: bool | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code
        if transient is not None:
            self._transient = transient

    @property
    def transient(self) -> bool:
        """Whether the same command may succeed later, with nothing changed."""
        if self._transient is not None:
            return self._transient
        return is_passing(self.__cause__ or self.__context__)

    def document(self) -> ErrorDocument:
        code = int(self.exit_code)
        return {"what": self.what, "why": self.why, "hint": self.hint, "exit_code": code, "transient": self.transient}

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that receives this exception gets it without its causes.
        reduced = super().__reduce__()
        assert isinstance(reduced, tuple)
        return (*reduced[:2], {**vars(self), "_transient": self.transient})

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.why, self.hint and f"hint: {self.hint}") if line)


def error_of(document: ErrorDocument) -> AifxError:
    """The error that a document is of."""
    what, why, hint = document["what"], document["why"], document["hint"]
    return AifxError(what, why, hint, exit_code=ExitCode(document["exit_code"]), transient=document["transient"])


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

    _transient = True


class Terminated(KeyboardInterrupt):
    """SIGTERM, to a command that it ends as Ctrl-C does."""


def could_not(what: str, error: BaseException, number: int, place: str = "") -> EnvironmentFault:
    """The error of a command that the machine refused with `number`, as `error` reports it.

    Args:
        what: what failed, naming the file: "could not write /data/runs/main/metrics.jsonl".
        place: the file to look at, if there is one.
    """
    reason, detail = os.strerror(number), first_line(error)
    why = detail if reason in detail else f"{reason}: {detail}"
    if number in (errno.EMFILE, errno.ENFILE):
        hint = "ulimit -n 4096, then run it again"
    elif number == errno.EFBIG:
        hint = "ulimit -f unlimited, then run it again"
    elif number in TRANSIENT or not place:
        hint = "aifx doctor    (checks disks and the kernel log); then run it again"
    else:
        hint = f"ls -ld {place}"
    return EnvironmentFault(what, why, hint, transient=number in FULL | TRANSIENT)


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
