"""Errors while a checkpoint is written or read, in aifx's words, and when a write that failed is repeated.

TensorStore wraps errors of the operating system in many types.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from aifx.checkpoint.manifest import Damaged, step_directories
from aifx.core.errors import AifxError, ExitCode, could_not
from aifx.core.json_files import disk_full, readable_bytes
from aifx.core.os_errors import FULL, PASSING, UNREADABLE, causes, first_line, in_brief, refusal_in

_FULL_TEXT = re.compile(r"RESOURCE_EXHAUSTED.*(?:space|quota)", re.IGNORECASE)
_DENIED_TEXT = "PERMISSION_DENIED"


def check_room(directory: Path, needed: int) -> None:
    """Raise OSError (ENOSPC) if the disk has no room for `needed` bytes of arrays, before it is filled."""
    stat = os.statvfs(directory)
    # A file system that reports no size (0 blocks) shows its room only by writing.
    if stat.f_blocks and stat.f_bavail * stat.f_frsize < _on_disk(needed):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def _on_disk(needed: int) -> int:
    """Bytes on the disk of a checkpoint with `needed` bytes of arrays, with its other files and their blocks."""
    return needed + needed // 100 + (64 << 10)


def may_pass(error: BaseException) -> bool:
    """Whether writing the same checkpoint again, to other files, may succeed now or later."""
    is_preempted = isinstance(error, AifxError) and error.exit_code == ExitCode.PREEMPTED
    return not is_preempted and not isinstance(error, Damaged) and _number(error) in PASSING


def while_writing(error: BaseException, directory: Path, step: int, needed: int, num_checkpoints: int) -> BaseException:
    """The error to raise instead of `error`, which a save of `needed` bytes met. Its temporary files are gone.

    Args:
        num_checkpoints: how many the disk must hold at a time: those that stay, and the new one.
    """
    if isinstance(error, AifxError):
        return error
    number = _number(error)
    if number in FULL:
        fault = disk_full(directory, _on_disk(needed))
        if any(step_directories(directory)):
            kept, again = "; what was saved before is whole", "it resumes"
        else:
            space = readable_bytes(num_checkpoints * needed)
            kept = f"\nnothing was saved; {num_checkpoints} checkpoints of this size need {space}"
            again = "it starts again"
        fault.what = f"no room for the checkpoint of step {step} in {directory}"
        fault.why += kept
        fault.hint = f"free some room (df -h {directory}) and run again: {again}; checkpoint.keep_last=1 needs less"
        return fault
    if number is not None:
        return could_not(f"could not write the checkpoint of step {step} in {directory}", error, number, str(directory))
    return error


def while_reading(error: Exception, directory: Path) -> Exception:
    """The error to raise instead of `error`, which reading the checkpoint at `directory` met."""
    if isinstance(error, AifxError | MemoryError):
        return error
    number = _number(error)
    if number in UNREADABLE:
        return could_not(f"could not read the checkpoint {directory}", error, number, str(directory))
    return Damaged(f"checkpoint {directory} is damaged", first_line(error))


def _number(error: BaseException) -> int | None:
    """The operating system's errno in `error`."""
    texts = [str(cause) for cause in causes(error)]
    if any(map(_FULL_TEXT.search, texts)):
        return errno.ENOSPC
    number = refusal_in(error)
    return errno.EACCES if number is None and any(_DENIED_TEXT in text for text in texts) else number


RETRY_S = 1.0
"""The first pause; each one is twice as long as the one before."""

LONGEST_PAUSE_S = 60.0


class WriteRetries:
    """Decides in process 0 what becomes of a checkpoint that could not be written.

    A training goes on without it: the run loses nothing that it has. So nothing is given up while there are steps to
    do. Once the training waits, the disk has `timeout_s` to recover.

    Args:
        warn: called with a line for people; of a failure that lasts, once for each reason.
        on_refusal: called with the step and the error, once for each reason.
    """

    def __init__(
        self, timeout_s: float, warn: Callable[[str], None], on_refusal: Callable[[int, BaseException], None]
    ) -> None:
        self._timeout_s, self._warn, self._on_refusal = timeout_s, warn, on_refusal
        self._wake = threading.Event()
        self._is_superseded = False
        self._deadline: float | None = None
        self._reason: object = None  # of the failure that lasts

    def begin(self) -> None:
        """A checkpoint is about to be written."""
        self._is_superseded, self._deadline = False, None
        self._wake.clear()

    def supersede(self) -> None:
        """There is a newer state: a checkpoint that the disk refuses now is not written again."""
        self._is_superseded = True
        self._wake.set()

    def limit(self) -> None:
        """The training waits."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._timeout_s
        self._wake.set()

    def written(self, step: int) -> None:
        """The disk took the checkpoint of `step`."""
        if self._reason is not None:
            self._warn(f"the disk takes checkpoints again: that of step {step} is saved")
        self._reason = None

    def decide(self, step: int, fault: BaseException, attempt: int) -> Literal["again", "drop", "fail"]:
        """The decision after `fault`; waits before another attempt."""
        number = refusal_in(fault)
        if attempt == 0:
            if self._reason is None and number not in FULL:
                self._warn(f"{in_brief(fault)}; writing it again")
            return "again"
        if self._is_expired():
            return "fail"
        reason = number or str(fault)
        if reason != self._reason:
            self._reason = reason
            self._warn(f"{in_brief(fault)}; training goes on, and aifx tries again until the disk takes a checkpoint")
            self._on_refusal(step, fault)
        if not self._is_superseded:
            self._wake.wait(min(RETRY_S * 2 ** (attempt - 1), LONGEST_PAUSE_S))
            self._wake.clear()
        return "drop" if self._is_superseded else "again"

    def _is_expired(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline
