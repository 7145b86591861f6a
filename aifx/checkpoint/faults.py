"""What went wrong while a checkpoint was written or read, in our words: Orbax and TensorStore wrap it in many types."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from aifx.checkpoint.manifest import Damaged
from aifx.errors import AifxError, EnvironmentFault
from aifx.runs.files import FULL, disk_full

_FULL_TEXT = re.compile(
    r"No space left on device|Disk quota exceeded|RESOURCE_EXHAUSTED.*(?:space|quota)", re.IGNORECASE
)
_MACHINE_TEXT = re.compile(
    r"PERMISSION_DENIED|Permission denied|Read-only file system|Too many open files|Stale file handle"
)


def check_room(directory: Path, needed: int) -> None:
    """Raises OSError (ENOSPC) when the disk cannot take `needed` bytes of arrays: told before it is full for all."""
    stat = os.statvfs(directory)
    overhead = needed // 100 + (64 << 10)
    # A file system that tells no size (0 blocks) is asked by writing.
    if stat.f_blocks and stat.f_bavail * stat.f_frsize < needed + overhead:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def while_writing(error: BaseException, directory: Path, step: int, needed: int) -> BaseException:
    """The error to raise instead of `error`, which a save of `needed` bytes met. Its temporary files are gone."""
    if isinstance(error, AifxError):
        return error
    if _is_full(error):
        fault = disk_full(directory, needed)
        fault.what = f"no room for the checkpoint of step {step} in {directory}"
        fault.hint = f"free some room (df -h {directory}) and run again: it resumes; checkpoint.keep_last=1 needs less"
        return fault
    if _is_machine(error):
        return EnvironmentFault(f"could not write the checkpoint of step {step} in {directory}", first_line(error))
    return error


def while_reading(error: Exception, directory: Path) -> Exception:
    """The error to raise instead of `error`, which reading the checkpoint at `directory` met."""
    if isinstance(error, AifxError | MemoryError):
        return error
    if _is_machine(error):
        return EnvironmentFault(f"could not read the checkpoint {directory}", first_line(error))
    return Damaged(f"checkpoint {directory} is damaged", first_line(error))


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0] if len(text[0]) <= 200 else text[0][:197] + "..."


def _is_full(error: BaseException) -> bool:
    return any((isinstance(e, OSError) and e.errno in FULL) or _FULL_TEXT.search(str(e)) for e in _chain(error))


def _is_machine(error: BaseException) -> bool:
    return any(
        (isinstance(e, OSError) and not isinstance(e, FileNotFoundError | NotADirectoryError | IsADirectoryError))
        or _MACHINE_TEXT.search(str(e))
        for e in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts, and the members of groups."""
    waiting, seen = [error], set[int]()
    while waiting:
        e = waiting.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        yield e
        waiting += [inner for inner in (e.__cause__, e.__context__) if inner is not None]
        if isinstance(e, BaseExceptionGroup):
            waiting += e.exceptions
