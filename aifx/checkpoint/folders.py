"""The folders of checkpoints: a step appears whole by one rename, and leaves by one.

While step 100 is written, `100.unfinished/100` holds it. Whatever ends in `.unfinished` is no checkpoint, and is
removed by the next process that holds the run.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from aifx.checkpoint.manifest import DAMAGED_SUFFIX, STATE, TEMPORARY_SUFFIX, step_directories
from aifx.core.artifact import publish
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, CheckpointError, EnvironmentFault
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


def local_folder(local_dir: str, run: Path, run_id: str) -> Path:
    """The folder of a run's local checkpoints. A copy of the run's folder has the same id, and another one of these."""
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        raise CheckpointError(f"the run's id in {run / 'digests.json'} is not one that aifx made", repr(run_id))
    place = sha256_of(os.fsencode(run.resolve()))[:8]
    return Path(local_dir) / f"aifx-{run_id}-{place}"


def newest_local(folder: Path) -> int:
    """The step of the newest checkpoint in `folder`, or 0."""
    with suppress(OSError, AifxError):
        return max(step_directories(folder), default=0)
    return 0


def remove_local(folder: Path) -> None:
    """Delete the local checkpoints in `folder`, if it is this user's. What the disk refuses stays."""
    with suppress(OSError, AifxError):
        check_owner(folder)
        shutil.rmtree(folder, ignore_errors=True)


def check_owner(folder: Path) -> None:
    """Raise AifxError if `folder` is there and not a folder of this user: anyone may write beside it."""
    check_folder(folder)
    if folder.exists() and folder.stat().st_uid != os.geteuid():
        what = f"the folder {folder} belongs to another user"
        raise EnvironmentFault(what, "local checkpoints of others are not trusted", f"ls -ld {folder}")
