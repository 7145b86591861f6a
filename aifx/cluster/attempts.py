"""Starts that bring a run no further: a run that dies three times at the same place is not started a fourth time."""

from __future__ import annotations

from collections.abc import Sequence

from aifx.checkpoint.manifest import read_checkpoint, step_directories
from aifx.core.artifact import damaged_files
from aifx.core.errors import AifxError
from aifx.core.files import check_tree
from aifx.core.project import RunDirectory

STARTS = 3


def newest_step(run: RunDirectory) -> int:
    """The step of the newest checkpoint, which is not read; 0 if there is none."""
    return max(step_directories(run.checkpoints), default=0)


def check_progress(run: RunDirectory, starts: Sequence[int]) -> None:
    """Raise AifxError if the last STARTS starts have not brought a newer checkpoint whose files are whole.

    Args:
        starts: the newest step at each start so far. Only as many starts make it read a checkpoint.
    """
    if len(starts) < STARTS:
        return
    before = starts[-STARTS]
    for step, folder in sorted(step_directories(run.checkpoints).items(), reverse=True):
        if step <= before:
            break
        try:
            check_tree(folder)
            artifact, _ = read_checkpoint(folder)
            if not damaged_files(folder, artifact):
                return
        except (OSError, AifxError):
            continue
    where = f"step {before}" if before else "its beginning"
    what = f"run {run.name} was started {STARTS} times from {where}, and saved no newer checkpoint"
    raise AifxError(what, "another start would most likely end as they did", f"read {run.log}; aifx doctor")
