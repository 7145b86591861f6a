"""The folder of a run's local checkpoints: its name, its owner, and its end. Imports neither jax nor TensorStore."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from aifx.checkpoint.manifest import step_directories
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, CheckpointError, EnvironmentFault
from aifx.core.files import check_folder


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
