"""Folders and files that several processes use, and the removal of folders while nobody does.

A process that uses a folder locks the file `.lock` in it. The kernel releases the lock when the process ends, however
it ends.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aifx.core.errors import AifxError
from aifx.core.files import open_file

LOCK = ".lock"
REMOVED = ".removed-"
"""The beginning of the name of a folder whose removal was interrupted."""


class FolderBusy(AifxError):
    """Another process holds a folder."""


@contextmanager
def holding(folder: Path, what: str, purpose: str, *, shared: bool = False, makes: bool = True) -> Iterator[None]:
    """Hold a folder. Raises FolderBusy if another process holds it, OSError.

    Args:
        what: the folder in messages, such as "data set corpus".
        purpose: what this process does, as it follows "process 123", such as "makes a version of it".
        shared: together with others that hold it so.
        makes: make the folder if it is not there, instead of raising FileNotFoundError.
    """
    handle = _lock(folder, what, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, makes)
    try:
        if not shared:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} {purpose}\n".encode(), 0)
        yield
    finally:
        if not shared:
            with suppress(OSError):
                os.ftruncate(handle, 0)
        os.close(handle)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until nobody else holds the lock file `path`, then hold it alone. The file stays."""
    handle = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(folder: Path, what: str, kind: int, makes: bool) -> int:
    """A descriptor of the folder's lock file, which this process has locked."""
    while True:
        if makes:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if makes:
                continue  # removed before it was held
            raise
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(folder / LOCK)):
                    return handle
        except BlockingIOError:
            holder = os.read(handle, 100).decode(errors="replace").strip() or "another process uses it"
            os.close(handle)
            raise FolderBusy(f"{what} is in use", holder, "run the same command again when it has ended") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the holder before has removed the folder


def remove_folder(folder: Path, what: str, hidden: Path | None = None) -> None:
    """Delete a folder, which is whole or gone whenever this is interrupted, unless a process holds it.

    Args:
        what: the folder in messages.
        hidden: a new path that it gets before it is deleted; by default one beside it that begins with REMOVED.

    Raises FolderBusy, OSError; FileNotFoundError if it is not there.
    """
    if not folder.name.startswith(REMOVED):
        hidden = hidden or folder.with_name(f"{REMOVED}{secrets.token_hex(6)}")
        with holding(folder, what, "deletes it", makes=False):
            os.rename(folder, hidden)
        folder = hidden
    while folder.exists():  # on NFS a folder with an open file cannot go, so nobody holds it here
        with suppress(FileNotFoundError):  # another process deletes it, too
            shutil.rmtree(folder)
