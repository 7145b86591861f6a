"""Removing, renaming and tagging runs."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aifx.checkpoint.folders import local_folder, remove_local
from aifx.core.errors import AifxError, UsageError
from aifx.core.files import REMOVED, check_folder, read_file
from aifx.core.json_files import sync_directory, write_json
from aifx.core.parsing import parse_json, parse_toml
from aifx.core.project import RUN_NAME, Project, RunDirectory
from aifx.runs.binding import read_digests
from aifx.runs.formats import TagsFile
from aifx.runs.lock import hold_run


def size_of(run: RunDirectory) -> int:
    """Bytes that the files of a run take on the disk, local checkpoints included. Links are not followed."""
    return sum(
        Path(folder, name).lstat().st_blocks * 512
        for place in (run.path, local_checkpoints(run))
        for folder, _, names in os.walk(place or os.devnull)
        for name in names
        if os.path.lexists(Path(folder, name))
    )


def local_checkpoints(run: RunDirectory) -> Path | None:
    """The folder of a run in its `checkpoint.local_dir`; None if it has none on this host."""
    with suppress(OSError, ValueError, LookupError, TypeError, AifxError):
        local_dir = parse_toml(read_file(run.config, below=run.path).decode())["checkpoint"]["local_dir"]
        folder = local_folder(local_dir, run.path, read_digests(run).run_id)
        return folder if folder.is_dir() else None
    return None


def remove_run(project: Project, run: RunDirectory) -> None:
    """Delete a run and its local checkpoints on this host. Raises RunBusy if a process trains it, UnsafeFile for links.

    The folder is renamed first, so an interruption leaves no half-deleted run. The next removal deletes the rest.
    """
    check_folder(run.path)
    with hold_run(run):
        if (local := local_checkpoints(run)) is not None:
            remove_local(local)
        doomed = project.runs_path / f"{REMOVED}{run.name}-{secrets.token_hex(4)}"
        run.path.rename(doomed)
        sync_directory(project.runs_path)
        shutil.rmtree(doomed)
    for leftover in project.runs_path.glob(f"{REMOVED}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)


def rename_run(project: Project, run: RunDirectory, name: str) -> RunDirectory:
    """Give a run another name and return it. Raises RunBusy if a process trains it, UsageError for a name in use."""
    target = project.run(name)
    check_folder(run.path)
    if os.path.lexists(target.path):
        hint = f"aifx runs rm {name}    (or choose another name)"
        raise UsageError(f"{target.path} exists already", "a run is renamed to a name that is not in use", hint)
    with hold_run(run):
        local = local_checkpoints(run)
        run.path.rename(target.path)
        sync_directory(project.runs_path)
        if local is not None:  # its name depends on the run's path
            with suppress(OSError, AifxError):
                local.rename(local_folder(str(local.parent), target.path, read_digests(target).run_id))
        _rename_in_evaluations(target)
    return target


def _rename_in_evaluations(run: RunDirectory) -> None:
    """Put the run's name into its reports; a report that cannot be read stays as it is."""
    for path in run.eval.glob("*.json"):
        try:
            document = parse_json(read_file(path, below=run.path))
        except (OSError, ValueError, AifxError):
            continue
        if isinstance(document, dict) and "run" in document:
            before = path.stat()
            write_json(path, {**document, "run": run.name})
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def read_tags(run: RunDirectory) -> tuple[str, ...]:
    """The tags of a run, sorted; none if the file is missing or holds anything else."""
    try:
        document: Any = parse_json(read_file(run.tags, below=run.path))
    except (OSError, ValueError, AifxError):
        return ()
    tags = document.get("tags") if isinstance(document, Mapping) else None
    return tuple(sorted({tag for tag in tags if _is_tag(tag)})) if isinstance(tags, list) else ()


def change_tags(run: RunDirectory, add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
    """Add and remove tags of a run and return those that it has then. Raises UsageError."""
    added, removed, before = set(add), set(remove), set(read_tags(run))
    for tag in added | removed:
        if not _is_tag(tag):
            why = "a tag has letters, digits, '.', '_' and '-', 100 at most, and begins with a letter or digit"
            raise UsageError(f"{tag!r} cannot be a tag", why, f"aifx runs tag {run.name} baseline")
    if missing := sorted(removed - before):
        there = f"its tags: {', '.join(sorted(before))}" if before else "it has no tag"
        raise UsageError(f"run {run.name!r} has no tag {missing[0]!r}", there, f"aifx runs tag {run.name}")
    after = tuple(sorted((before - removed) | added))
    if set(after) != before:
        check_folder(run.path)
        document: TagsFile = {"schema_version": 1, "tags": list(after)}
        write_json(run.tags, document)
    return after


def _is_tag(tag: object) -> bool:
    return isinstance(tag, str) and RUN_NAME.fullmatch(tag) is not None
