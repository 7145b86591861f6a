"""The folders of checkpoints: a step appears whole by one rename, and leaves by one.

While step 100 is written, `100.unfinished/100` holds it. Whatever ends in `.unfinished` is no checkpoint, and is
removed by the next process that holds the run.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from aifx.checkpoint.manifest import DAMAGED_SUFFIX, STATE, TEMPORARY_SUFFIX
from aifx.core.artifact import publish
from aifx.core.files import check_folder
from aifx.core.json_files import sync_directory

DISCARD_RETRY_S = 0.05

_REPLACED = "replaced"


def temporary_place(directory: Path, step: int, attempt: int = 0) -> Path:
    """Where `step` is written before it is a checkpoint.

    Each attempt has a folder of its own: TensorStore's threads may still be writing into the one that failed.
    """
    return directory / f"{step}{f'.{attempt}' if attempt else ''}{TEMPORARY_SUFFIX}" / str(step)


def prepare(place: Path) -> None:
    """Make the temporary `place`, with the empty folder of a checkpoint's arrays."""
    check_folder(place.parent.parent)
    _delete(place.parent)
    (place / STATE).mkdir(parents=True)


def commit(place: Path) -> None:
    """Make the prepared step at `place` a checkpoint, in place of one that may be there."""
    temporary = place.parent
    final = temporary.parent / place.name
    if final.exists():
        # If the process is killed between the two renames, `clean` puts the old one back.
        final.rename(temporary / _REPLACED)
    publish(place, final)
    shutil.rmtree(temporary, ignore_errors=True)  # what stays is removed by the next process


def discard(place: Path) -> None:
    """Remove the prepared step at `place`, as far as the disk allows."""
    temporary = place.parent
    with suppress(OSError):
        _put_back(temporary)
    for _ in range(20):  # TensorStore's threads may still be writing into it
        _delete(temporary)
        if not os.path.lexists(temporary):
            break
        time.sleep(DISCARD_RETRY_S)


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
    """Delete what is at `path` as far as the disk allows; of a link, only the link."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _put_back(temporary: Path) -> None:
    replaced = temporary / _REPLACED
    final = temporary.with_name(temporary.name.removesuffix(TEMPORARY_SUFFIX).partition(".")[0])
    if not temporary.is_symlink() and replaced.is_dir() and not final.exists():
        replaced.rename(final)
