"""A run that is made whole in a hidden folder, and appears by one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from aifx.checkpoint.manifest import Manifest, read_info, read_manifest
from aifx.core.errors import AifxError, UsageError
from aifx.core.json_files import sync_directory
from aifx.core.project import Project, RunDirectory
from aifx.kinds import read_config
from aifx.runs.binding import binding_errors
from aifx.runs.lock import hold_run


def run_made_before(
    project: Project, run: RunDirectory, step: int, differences: Iterable[str], hint: str
) -> Manifest | None:
    """The checkpoint of a run that a command made before, as when it was killed just after; None if the name is free.

    Args:
        step: of the only checkpoint that the command makes.
        differences: between what the run was made of and what is asked for now. Read only if there is such a run.

    Raises UsageError if anything else is there: a run that differs, or whose files are not what the command wrote.
    """
    if not os.path.lexists(run.path):
        return None
    folder = run.checkpoints / str(step)
    try:
        why = next(iter(differences), None) or read_info(folder).damaged
        if why is None:
            manifest = read_manifest(folder)
            errors = binding_errors(run, read_config(run.config, project, environ={}), step, manifest.run)
            if (error := next(errors, None)) is None:
                return manifest
            why = error.what
    except AifxError as error:
        why = error.what
    raise _exists(run, f"; {why}", hint)


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
            if os.path.lexists(run.path):
                raise _exists(run, "; another process made it", "aifx runs ls")
            staged.path.rename(run.path)
            sync_directory(project.runs_path)
        except BaseException:
            shutil.rmtree(staged.path, ignore_errors=True)
            if not had_runs:
                with suppress(OSError):
                    project.runs_path.rmdir()
            raise


def _exists(run: RunDirectory, why: str, hint: str) -> UsageError:
    return UsageError(f"run {run.name!r} exists already", f"it is {run.path}{why}", hint)


def _clear(run: RunDirectory) -> None:
    """Remove what a process that was killed left, but not the lock, which this process holds."""
    for entry in run.path.iterdir():
        if entry != run.lock:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
