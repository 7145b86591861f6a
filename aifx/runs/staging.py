"""A run that is made whole in a hidden folder, and appears by one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aifx.core.errors import UsageError
from aifx.core.json_files import sync_directory
from aifx.core.project import Project, RunDirectory
from aifx.runs.lock import hold_run


def check_name_is_free(run: RunDirectory, hint: str) -> None:
    """Raise UsageError if there is anything at the place of `run`."""
    if os.path.lexists(run.path):
        raise UsageError(f"run {run.name!r} exists already", f"it is {run.path}", hint)


@contextmanager
def staged_run(project: Project, run: RunDirectory) -> Iterator[RunDirectory]:
    """An empty run that becomes `run` when the block ends; nothing of it stays if the block raises.

    Raises RunBusy if another process makes the same run, UsageError if it exists by then.
    """
    had_runs = project.runs_path.exists()
    project.runs_path.mkdir(parents=True, exist_ok=True)
    staged = RunDirectory(project.runs_path / f".{run.name}.unfinished")
    with hold_run(staged):
        try:
            _clear(staged)
            yield staged
            check_name_is_free(run, "aifx runs ls")  # made since
            staged.path.rename(run.path)
            sync_directory(project.runs_path)
        except BaseException:
            shutil.rmtree(staged.path, ignore_errors=True)
            if not had_runs:
                with suppress(OSError):
                    project.runs_path.rmdir()
            raise


def _clear(run: RunDirectory) -> None:
    """Remove what a process that was killed left, but not the lock, which this process holds."""
    for entry in run.path.iterdir():
        if entry != run.lock:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
