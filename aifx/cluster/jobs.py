"""A job that was handed to a scheduler, and what a scheduler is asked about it.

`launched.py` looks after all jobs of a project; `slurm.py` and `kubernetes.py` each have a `Backend`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from aifx.core.json_files import read_jsonl

State: TypeAlias = Literal["pending", "running", "ending", "completed", "failed", "stopped", "unknown"]
"""State of a job. "ending": its processes save and leave. "unknown": its scheduler has forgotten it or is silent."""

OVER = ("completed", "failed", "stopped")
POLL_S = 2.0  # between questions to a scheduler, which has other users
ANSWER = "answer"
"""The file in a launch's folder with what process 0 wrote to stdout in the last start."""


@dataclass(frozen=True)
class LaunchRecord:
    """A job that was submitted to a scheduler.

    Attributes:
        id: of the launch, also the name of its folder.
        backend: "slurm" or another name of `launched.BACKENDS`.
        job: what the scheduler calls it.
        place: where the scheduler has it: a cluster, or a context and a namespace; empty for its default.
        run: name of the run; empty for a command that takes the newest.
        arguments: of aifx.
        time: Unix time in seconds.
    """

    id: str
    backend: str
    job: str
    place: str
    run: str
    arguments: tuple[str, ...]
    nodes: int
    processes_per_node: int
    time: float


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, by its scheduler.

    Attributes:
        why: the reason of a state, such as what a pending job waits for; may be empty.
        nodes: that it runs on; may be empty.
        exit_code: of a job that is over; None if it is not known.
        is_gone: nothing more will be known of it: its scheduler has forgotten it, or somebody deleted it.
    """

    state: State
    why: str = ""
    nodes: str = ""
    exit_code: int | None = None
    is_gone: bool = False

    def __str__(self) -> str:
        """`pending (Priority)`, `running on n[1-2]`, `failed (exit 2)`."""
        where = f" on {self.nodes}" if self.nodes else ""
        code = f"exit {self.exit_code}" if self.exit_code else ""
        more = ", ".join(part for part in (self.why, code) if part)
        return f"{self.state}{where}{f' ({more})' if more else ''}"


class Backend(Protocol):
    """A scheduler. Its methods raise EnvironmentFault if it does not answer."""

    def status(self, record: LaunchRecord, folder: Path) -> JobStatus:
        """The status of a job by the scheduler, or by the job's folder once the scheduler has forgotten it."""

    def stop(self, record: LaunchRecord, status: JobStatus, *, now: bool) -> None:
        """End a job. Its run saves first, except with `now`."""

    def lines(self, record: LaunchRecord, folder: Path) -> Iterator[bytes | None]:
        """Lines that the job writes, without their ends, and None each time that there is nothing new."""

    def last_lines(self, record: LaunchRecord, folder: Path, most: int) -> list[bytes]:
        """The last `most` lines that the job has written, or fewer if they are long."""

    def answer(self, record: LaunchRecord, folder: Path) -> bytes:
        """What process 0 wrote to stdout when the job ended, such as the document of `--json`; empty if nothing."""


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a launch: `begin`, `start`, `signal`, `requeue`, `stop` and `end`, each with its time."""
    return read_jsonl(folder / "events.jsonl")
