"""The statuses of all runs of a project. Those of runs that have not changed are from an index, which is a cache.

    <caches>/runs/<digest of the folder's path>.json

An entry has the state of each file that a status is made of: size, inode and times. A run with other states,
or that a process holds, is read. The index is replaced whole, so a process that is killed leaves the one before. Of
processes that write at once, the last one's stays: each entry is true by itself.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError
from aifx.core.file_states import SETTLED_NS
from aifx.core.files import RECORDS_LIMIT, UnsafeFile, make_folders, read_file, replace_file
from aifx.core.json_values import encode_json, plain
from aifx.core.parsing import parse_json
from aifx.core.project import Project, RunDirectory, cache_path
from aifx.core.version import __version__
from aifx.runs.lock import is_held
from aifx.runs.status import RunList, RunStatus, run_status

FORMAT = 1
FIELDS = frozenset(one.name for one in fields(RunStatus))

State = list[Any]
"""Name, size, inode, mtime and ctime in nanoseconds of a file or folder of a run."""

logger = logging.getLogger(__name__)


def list_runs(project: Project, tag: str | None, on_error: Callable[[Exception], None]) -> RunList:
    """The project's runs, the one written last at the end; with `tag` those that have it.

    Args:
        on_error: called for a run that cannot be read; it does not hide the others.
    """
    index = _Index(project.runs_path)
    found = []
    for run in project.runs():
        try:
            found.append(index.status(run))
        except (UnsafeFile, OSError) as error:
            on_error(error)
    index.save()
    return RunList([status for status in found if tag in (None, *status.tags)])


class _Index:
    def __init__(self, runs_path: Path) -> None:
        folder = str(runs_path.absolute())
        self._key = [FORMAT, __version__, folder]
        self._path = self._place(folder)
        self._before = self._read()
        self._now: dict[str, Any] = {}

    def _place(self, folder: str) -> Path | None:
        try:
            return cache_path("runs") / f"{sha256_of(folder.encode())[:32]}.json"
        except (AifxError, OSError, RuntimeError) as error:  # nobody asked for the cache; pathlib: no home directory
            logger.debug("no index of runs: %s", error)
            return None

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        with suppress(OSError, ValueError, KeyError, TypeError, AifxError):
            document: Any = parse_json(read_file(self._path, limit=RECORDS_LIMIT))
            if document["key"] == self._key and isinstance(document["runs"], dict):
                runs: dict[str, Any] = document["runs"]
                return runs
        return {}

    def status(self, run: RunDirectory) -> RunStatus:
        """The status of a run. Raises as `run_status`."""
        # The lock is asked first: a process that ends in between has then written its last event.
        held = is_held(run)
        seen_ns = time.time_ns()
        try:
            states = [] if held else list(_states(run))
        except OSError:  # what cannot be looked at is not remembered either
            return run_status(run)
        if not held and (status := self._known(run, states)) is not None:
            self._now[run.name] = self._before[run.name]
            return status
        status = run_status(run)
        is_settled = all(max(state[3:]) + SETTLED_NS <= seen_ns for state in states)
        if not held and not status.alive and is_settled:
            self._now[run.name] = [states, plain(status)]
        return status

    def _known(self, run: RunDirectory, states: list[State]) -> RunStatus | None:
        match self._before.get(run.name):
            case [before, dict() as status] if before == states and status.keys() == FIELDS:
                return RunStatus(**{**status, "tags": tuple(status["tags"])})
        return None

    def save(self) -> None:
        """Write the index if it changed. A failure costs the next call time, and nothing else."""
        if self._path is None or self._now == self._before:
            return
        try:
            make_folders(self._path.parent, below=cache_path())
            replace_file(self._path, encode_json({"key": self._key, "runs": self._now}).encode())
        except (AifxError, OSError) as error:
            logger.debug("the index of runs was not written: %s", error)


def _states(run: RunDirectory) -> Iterator[State]:
    """The states of all that the status of a run that has ended is made of."""
    folder = os.fspath(run.path)
    for name in ("config.toml", "events.jsonl", "metrics.jsonl", "tags.json"):
        with suppress(FileNotFoundError):
            yield _state(name, os.lstat(f"{folder}/{name}"))
    # The last checkpoint is examined: its manifest, and that each file of it is there with its size.
    with suppress(FileNotFoundError, NotADirectoryError):
        checkpoints = f"{folder}/checkpoints"
        yield _state("checkpoints", os.lstat(checkpoints))
        steps = [name for name in os.listdir(checkpoints) if name.isascii() and name.isdigit()]
        if steps:
            yield from _below(f"{checkpoints}/{max(steps, key=int)}", "checkpoint")


def _below(folder: str, name: str) -> Iterator[State]:
    found = os.lstat(folder)
    yield _state(name, found)
    if stat.S_ISDIR(found.st_mode):
        for entry in sorted(os.listdir(folder)):
            yield from _below(f"{folder}/{entry}", f"{name}/{entry}")


def _state(name: str, found: os.stat_result) -> State:
    return [name, found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
