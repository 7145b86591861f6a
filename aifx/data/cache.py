"""Folders of the cache that several processes may build at the same time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from aifx.core.errors import EnvironmentFault
from aifx.core.files import remove_temporary
from aifx.core.locks import REMOVED, FolderBusy, holding, remove_folder
from aifx.core.private_folders import make_private
from aifx.core.project import cache_location

BUILDING = ".tmp-"
"""In the name of a folder that is being built, after the name that it gets."""


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


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, to be renamed to it. It is deleted when the block ends, unless it was renamed.

    This process holds it, so that others know it from what killed ones left, which is deleted first. Raises as
    `cache_folder` does.
    """
    held = ExitStack()
    with cache_folder(path.parent):
        sweep(path.parent)
        folder = _held_folder(path, held)
    try:
        yield folder
    finally:
        held.close()
        shutil.rmtree(folder, ignore_errors=True)


def _held_folder(path: Path, held: ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{path.name}{BUILDING}", dir=path.parent))
        try:
            held.enter_context(holding(folder, str(folder), "builds it"))
        except FolderBusy:
            continue  # another process sweeps it
        except OSError:
            pass  # a file system without locks, on which nobody sweeps
        return folder


def sweep(folder: Path) -> None:
    """Delete what killed builders left, as far as the disk allows."""
    for stray in (*folder.glob(f"*{BUILDING}*"), *folder.glob(f"{REMOVED}*")):
        with suppress(OSError, FolderBusy):
            remove_folder(stray, str(stray))
    remove_temporary(folder)
