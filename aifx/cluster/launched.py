"""Launches on a cluster: a folder each below `runs/.launched`, and how they are looked after.

`record.json` names the job and its scheduler, and `events.jsonl` has its history. A scheduler is a `Backend`, found by
the name in the record.
"""

from __future__ import annotations

import importlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from aifx.cluster.jobs import OVER, POLL_S, Backend, JobStatus, LaunchRecord, read_events
from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, EnvironmentFault, UsageError, did_you_mean
from aifx.core.files import exclusive, make_folders, read_file
from aifx.core.json_files import write_json
from aifx.core.os_errors import first_line
from aifx.core.project import Project
from aifx.core.requests import Request, check_act
from aifx.core.results import Result

IDLE_S = 0.2
ASKED = "asked.json"
"""The record of a launch for a request, without its job, from before it was submitted."""

SUBMIT_S = 300.0
"""For another process to submit a job: it asks its scheduler up to five times, for `hosts.LIMIT_S` each."""

BACKENDS: Mapping[str, str] = {"slurm": "aifx.cluster.slurm", "kubernetes": "aifx.cluster.kubernetes"}
"""The module of each scheduler, which has a `BACKEND`. They are imported when they are asked."""


@dataclass(frozen=True)
class Launched:
    """A launch, and what became of it.

    Attributes:
        starts: of the processes so far, the first included.
    """

    record: LaunchRecord
    status: JobStatus
    starts: int


@dataclass(frozen=True)
class LaunchList(Result):
    """The document of `aifx launch ls --json`, the newest launch last."""

    launches: list[Launched]


def backend_of(record: LaunchRecord) -> Backend:
    """The scheduler of a launch. Raises UsageError for one that this version does not know."""
    if record.backend not in BACKENDS:
        raise UsageError(f"launch {record.id} is on {record.backend!r}", did_you_mean(record.backend, BACKENDS))
    backend: Backend = importlib.import_module(BACKENDS[record.backend]).BACKEND
    return backend


def new_id(run: str) -> str:
    return f"{run or 'newest'}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(1)}"


def requested_id(project: Project, request: Request) -> str:
    """The id of the launch that a request makes. Another project of the same cluster has another one."""
    return f"request-{sha256_of(f'{project.root}: {request.id}')[:24]}"


def submitting(project: Project, launch: str) -> AbstractContextManager[int]:
    """Hold a launch for its submission, by the descriptor of a lock that the scheduler's program inherits.

    Raises FolderBusy if a program that outlived its aifx hands the job over for longer than SUBMIT_S.
    """
    what = f"launch {launch} is being submitted"
    return exclusive(make_folder(project, launch) / "lock", SUBMIT_S, what)


def write_asked(project: Project, record: LaunchRecord) -> None:
    """Keep the record of a launch that is about to be submitted for a request, so that nothing of it is lost."""
    write_json(folder_of(project, record.id) / ASKED, asdict(record))


def find_asked(project: Project, request: Request, backend: str) -> LaunchRecord | None:
    """The record of the launch of a request; None if nothing was submitted. The caller holds the launch.

    A job whose record was not written any more is found by the scheduler or by what it has written itself.
    Raises UsageError if its id is of a launch on another scheduler, EnvironmentFault if the scheduler does not answer.
    """
    record = _find_asked(project, requested_id(project, request))
    if record is not None:
        check_act(request.id, record.backend == backend, f"it is of a launch on {record.backend}")
    return record


def _find_asked(project: Project, launch: str) -> LaunchRecord | None:
    folder = folder_of(project, launch)
    try:
        return _RECORD.validate_json(read_file(folder / "record.json", below=project.runs_path))
    except FileNotFoundError:
        pass
    try:
        asked = _RECORD.validate_json(read_file(folder / ASKED, below=project.runs_path))
    except FileNotFoundError:
        return None
    job = importlib.import_module(BACKENDS[asked.backend]).find_job(asked, folder)
    if job is None:
        return None
    write_record(project, record := replace(asked, job=job))
    return record


def folder_of(project: Project, launch: str) -> Path:
    """The folder of a launch. Raises UsageError unless `launch` is a plain name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,129}", launch):
        raise UsageError(f"{launch!r} is not the id of a launch", "", "aifx launch ls")
    return project.runs_path / ".launched" / launch


def make_folder(project: Project, launch: str) -> Path:
    """The folder of a new launch. Raises UnsafeFile if a link leads to it."""
    folder = folder_of(project, launch)
    make_folders(folder, below=project.runs_path)
    return folder


def write_record(project: Project, record: LaunchRecord) -> None:
    write_json(folder_of(project, record.id) / "record.json", asdict(record))


def read_records(project: Project, on_error: Callable[[AifxError], None] = lambda _: None) -> list[LaunchRecord]:
    """All launches, the newest last.

    Args:
        on_error: called for a record that cannot be read, which is left out: its job may still run.
    """
    parent, found = project.runs_path / ".launched", []
    for folder in parent.iterdir() if parent.is_dir() else ():
        path = folder / "record.json"
        try:
            record = _RECORD.validate_json(read_file(path, below=parent))
        except FileNotFoundError:  # nothing was submitted yet
            continue
        except (OSError, ValidationError) as error:
            why = first_line(error) if isinstance(error, OSError) else "it is damaged"
            hint = f"head {folder / 'script.sh'}    (the name of its job)"
            on_error(EnvironmentFault(f"{path} cannot be read, and its job may still run", why, hint))
            continue
        if record.id == folder.name:
            found.append(record)
    return sorted(found, key=lambda record: (record.time, record.id))


def find_record(project: Project, name: str | None) -> LaunchRecord:
    """The launch that `name` means: its id, its run, or its number at the scheduler; the newest if it is None.

    Raises UsageError if there is none.
    """
    records = read_records(project)
    if name is None and not records:
        raise UsageError("nothing was launched here", "there is no record below runs/.launched", "aifx launch slurm")
    for record in reversed(records):
        if name in (None, record.id, record.run, record.job):
            return record
    assert name is not None
    why = did_you_mean(name, [record.id for record in records])
    raise UsageError(f"no launch {name!r} in {project.runs_path}", why, "aifx launch ls")


def list_launches(project: Project, on_error: Callable[[AifxError], None] = lambda _: None) -> LaunchList:
    """All launches with the state of their jobs. A scheduler that does not answer leaves it unknown.

    Args:
        on_error: see `read_records`.
    """
    found = []
    for record in read_records(project, on_error):
        folder = folder_of(project, record.id)
        try:
            status = backend_of(record).status(record, folder)
        except AifxError as error:
            status = JobStatus("unknown", error.what)
        starts = sum(event.get("event") == "start" for event in read_events(folder))
        found.append(Launched(record, status, starts))
    return LaunchList(found)


_RECORD = TypeAdapter(LaunchRecord)


def follow(
    record: LaunchRecord, folder: Path, on_line: Callable[[bytes], None], on_status: Callable[[JobStatus], None]
) -> JobStatus:
    """Pass on what a job writes, and each change of its status, until it is over."""
    backend, asked_at = backend_of(record), -POLL_S
    status = JobStatus("unknown")
    for line in backend.lines(record, folder):
        if line is not None:
            on_line(line)
            continue
        if status.state in OVER:
            break
        if time.monotonic() - asked_at < POLL_S:
            time.sleep(IDLE_S)
            continue
        asked_at, before = time.monotonic(), status
        if (status := backend.status(record, folder)) != before:
            on_status(status)
    return status
