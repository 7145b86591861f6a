"""The folders of checkpoints: a step appears whole by one rename, and leaves by one.

While step 100 is written, `100.orbax-checkpoint-tmp/100` holds it. Whatever ends in `.orbax-checkpoint-tmp` is no
checkpoint, and is removed by the next process that holds the run.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from aifx.checkpoint.manifest import DAMAGED_SUFFIX, TEMPORARY_SUFFIX
from aifx.files import check_folder
from aifx.runs.files import sync_directory

_REPLACED = "replaced"


def prepare(directory: Path, step: int) -> Path:
    """An empty temporary folder's place for `step` to be written to; it does not exist yet, its parent does."""
    check_folder(directory)
    temporary = _temporary(directory, step)
    _delete(temporary)
    temporary.mkdir(parents=True)
    return temporary / str(step)


def commit(directory: Path, step: int) -> None:
    """Make the prepared `step` a checkpoint, in place of one that may be there."""
    temporary, final = _temporary(directory, step), directory / str(step)
    if final.exists():
        # Killed between the two renames, `clean` puts the old one back.
        final.rename(temporary / _REPLACED)
    (temporary / str(step)).rename(final)
    sync_directory(directory)
    shutil.rmtree(temporary)


def discard(directory: Path, step: int) -> None:
    """Give up the prepared `step`, as far as the disk lets us."""
    temporary = _temporary(directory, step)
    _put_back(temporary)
    for _ in range(20):  # Orbax's threads may still be writing into it
        _delete(temporary)
        if not os.path.lexists(temporary):
            break
        time.sleep(0.05)


def remove(directory: Path, step: int) -> None:
    """Delete the checkpoint of `step`; it is gone at once even if deleting its files is cut short."""
    doomed = directory / f"{step}.removed{TEMPORARY_SUFFIX}"
    _delete(doomed)
    (directory / str(step)).rename(doomed)
    if doomed.is_symlink():
        doomed.unlink()
    else:
        shutil.rmtree(doomed)


def set_aside(directory: Path, step: int) -> Path:
    """Rename a damaged checkpoint out of the way; returns where it is now."""
    target = directory / f"{step}{DAMAGED_SUFFIX}"
    number = 2
    while target.exists():
        target = directory / f"{step}{DAMAGED_SUFFIX}-{number}"
        number += 1
    (directory / str(step)).rename(target)
    sync_directory(directory)
    return target


def clean(directory: Path) -> None:
    """Remove what a killed process left half-written or half-removed. Only for the process that holds the run."""
    check_folder(directory)
    for temporary in sorted(directory.glob(f"*{TEMPORARY_SUFFIX}")):
        _put_back(temporary)
        _delete(temporary)


def _delete(path: Path) -> None:
    """Delete what is at `path` as far as the disk lets us; of a link, the link alone."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _temporary(directory: Path, step: int) -> Path:
    return directory / f"{step}{TEMPORARY_SUFFIX}"


def _put_back(temporary: Path) -> None:
    replaced = temporary / _REPLACED
    final = temporary.with_name(temporary.name.removesuffix(TEMPORARY_SUFFIX))
    if not temporary.is_symlink() and replaced.is_dir() and not final.exists():
        replaced.rename(final)
