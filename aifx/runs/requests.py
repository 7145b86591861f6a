"""Requests of runs: a run has the ids that its training was asked for with, from its first file on.

    runs/<name>/requests/<digits>.json    the request; its outcome, null until the run has ended by itself

The file is written by the process that holds the run, before `config.toml`, so whatever is killed, an id leads to one
run at most. It moves with the run that is renamed, and ends with the one that is removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError, RunBusy
from aifx.core.files import exclusive, make_folders, read_file
from aifx.core.json_files import write_json
from aifx.core.project import RUN_NAME, Project, RunDirectory
from aifx.core.requests import Request, check_act

LOCK = ".requests.lock"
"""In the folder of the runs: whoever holds it may give an id to a run."""

DIGITS = 32


@dataclass(frozen=True)
class RunRequest:
    """The document of a request.

    Attributes:
        act: "train", or another training that is not of a run by its name alone.
        outcome: the document of the command that ended the run; null until then.
    """

    request: str
    act: str
    outcome: dict[str, Any] | None = None


def find_asked(project: Project, request: Request) -> tuple[RunDirectory, RunRequest] | None:
    """The run of a request. Raises UsageError if its id is of another act, DataError if the file is damaged."""
    for path in project.runs_path.glob(f"*/requests/{_file(request)}"):
        run = RunDirectory(path.parent.parent)
        if not RUN_NAME.fullmatch(run.name):
            continue  # a run that is being removed
        try:
            kept = _REQUEST.validate_json(read_file(path, below=run.path))
        except FileNotFoundError:
            continue
        except ValidationError as e:
            why = e.errors()[0]["msg"]
            raise DataError(f"{path} is damaged", why, "restore it from a copy, or use another --request") from None
        check_act(request.id, kept.act == request.act, f"run {run.name!r} has it, of {kept.act}")
        return run, kept
    return None


def keep_request(project: Project, run: RunDirectory, request: Request) -> None:
    """Give a run, which the caller holds, the id of a request. Raises RunBusy if another run got it meanwhile."""
    with exclusive(project.runs_path / LOCK):
        found = find_asked(project, request)
        if found is None:
            _write(run, request, None)
        elif found[0] != run:
            what, why = f"--request {request.id} began run {found[0].name!r} meanwhile", "an id is of one run"
            raise RunBusy(what, why, "run the same command again")


def finish_request(run: RunDirectory, request: Request, outcome: Mapping[str, Any]) -> None:
    """Keep the outcome of a request. The caller holds the run."""
    _write(run, request, dict(outcome))


def _write(run: RunDirectory, request: Request, outcome: dict[str, Any] | None) -> None:
    path = run.requests / _file(request)
    make_folders(path.parent, below=run.path)
    write_json(path, asdict(RunRequest(request.id, request.act, outcome)))


def _file(request: Request) -> str:
    return f"{sha256_of(request.id)[:DIGITS]}.json"


_REQUEST = TypeAdapter(RunRequest)
