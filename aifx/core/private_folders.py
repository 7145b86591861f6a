"""Folders whose content aifx executes or trusts: nobody else may write there."""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path

from aifx.core.errors import EnvironmentFault


def make_private(folder: Path) -> None:
    """Make a folder and the missing ones above it with mode 0700, whatever the umask.

    Raises EnvironmentFault if another user can write there, OSError if it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):  # made meanwhile by another process, or a link to nothing
            path.mkdir(0o700)
            path.chmod(0o700)
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))
    check_private(folder)


def check_private(folder: Path) -> None:
    """Raise EnvironmentFault if another user can write in a folder. One that is absent or cannot be seen passes."""
    try:
        found = folder.stat()
    except OSError:
        return
    what = f"the cache folder {folder} is not used"
    if found.st_uid not in (os.geteuid(), 0):  # root can write everywhere anyhow
        why = f"it belongs to {user_name(found.st_uid)}, whose compiled programs would run as you"
        raise EnvironmentFault(what, why, "AIFX_CACHE_DIR=/path/to/a/folder/of/your/own, then run it again")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "everyone" if found.st_mode & stat.S_IWOTH else "its group"
        why = f"{who} can write there, and programs compiled by others would run as you"
        raise EnvironmentFault(what, why, f"chmod go-w {folder}")


def user_name(uid: int) -> str:
    """The name and number of a user, for messages."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
