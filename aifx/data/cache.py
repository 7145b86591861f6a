"""Folders of the cache that several processes may build at the same time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aifx.core.errors import EnvironmentFault
from aifx.core.files import remove_temporary
from aifx.core.private_folders import make_private
from aifx.core.project import cache_location

STRAY_AFTER_S = 24 * 3600.0


@contextmanager
def cache_folder(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, or one beside data that others may share. Raises EnvironmentFault if it cannot be
    written."""
    try:
        if folder.is_relative_to(cache_location()):
            make_private(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        hint = "AIFX_CACHE_DIR=/path/to/write/to aifx train"
        raise EnvironmentFault(f"{folder} cannot be written", error.strerror or "", hint) from error


def sweep(folder: Path) -> None:
    """Remove what killed builders left behind."""
    for stray in folder.glob("*.tmp-*"):
        with suppress(OSError):
            if time.time() - stray.stat().st_mtime > STRAY_AFTER_S:
                shutil.rmtree(stray, ignore_errors=True)
    remove_temporary(folder)
