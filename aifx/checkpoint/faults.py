"""Errors while a checkpoint is written or read, in aifx's words: TensorStore wraps them in many types."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from aifx.checkpoint.manifest import Damaged, step_directories
from aifx.core.errors import AifxError, ExitCode
from aifx.core.json_files import disk_full, readable_bytes
from aifx.core.os_errors import FULL, PASSING, UNREADABLE, causes, could_not, first_line, refusal_in

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
