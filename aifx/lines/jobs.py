"""Jobs of stations that a cluster runs.

A try of such a station runs `aifx launch`, which submits the job and ends. The job is found again by the request that
it was submitted with, `ATTEMPT-JOB`. A try that was killed asks with the same request, so there is one job; a try after
a job that failed asks with the next one. The command in the job has the attempt as its request: a training goes on.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from aifx.cluster.jobs import OVER, JobStatus, LaunchRecord
from aifx.cluster.launched import backend_of, find_asked, folder_of, requested_id
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode
from aifx.core.project import Project
from aifx.core.requests import Request
from aifx.lines.file import Place

BACKENDS = {"slurm": "slurm", "k8s": "kubernetes"}
REASON_LINES = 20
"""Lines of a log among which the reason of a failure is looked for."""


@dataclass(frozen=True)
class JobEnd:
    """The end of a job.

    Attributes:
        code: exit code of its command; None if the scheduler does not know it, and the answer has to say it.
        answer: what the command printed.
        stopped: why it has no exit code of its own, such as that a person cancelled it; or empty.
        why: the reason of a failure, by the scheduler or the job's log.
        hint: a command that shows more.
    """

    code: int | None
    answer: bytes = b""
    stopped: str = ""
    why: str = ""
    hint: str = ""


@dataclass
class Job:
    """A job that a station has submitted.

    Attributes:
        on: where it runs.
        request: that it was submitted with.
        text: what the scheduler last said of it.
    """

    project: Project
    on: Place
    request: str
    text: str = ""
    _record: LaunchRecord | None = None
    _status: JobStatus = field(default_factory=lambda: JobStatus("unknown"))
    _asked_at: float = -math.inf

    def is_due(self, pause_s: float) -> bool:
        """Whether the last question was so long ago."""
        return time.monotonic() - self._asked_at >= pause_s

    @property
    def launch(self) -> str:
        """The id of its launch."""
        return requested_id(self.project, Request(self.request, "line"))

    def is_recorded(self) -> bool:
        """Whether the record of its submission is there; if it was lost, `look` writes it again."""
        return (folder_of(self.project, self.launch) / "record.json").exists()

    def look(self) -> JobEnd | None:
        """Ask the scheduler. Returns the end of the job; None while it waits or runs, or nobody answers."""
        self._asked_at = time.monotonic()
        try:
            self._find()
            if self._record is None:
                why = "no record of its job is left in runs/.launched, and the scheduler has none of its name"
                return JobEnd(ExitCode.UNABLE, stopped=why, hint="aifx launch ls")
            record, folder = self._record, folder_of(self.project, self._record.id)
            backend = backend_of(record)
            status = self._status = backend.status(record, folder)
            self.text = f"{self.on} job {record.job}: {status}"
            if status.state not in OVER and not status.is_gone:
                return None
            return self._end(record, status, backend.answer(record, folder))
        except EnvironmentFault as e:
            self.text = f"{self.on} does not answer: {e.what}"
        except (AifxError, ValueError) as e:
            return JobEnd(ExitCode.UNABLE, stopped=str(e).splitlines()[0], hint="aifx launch ls")
        return None

    def stop(self, *, now: bool) -> None:
        """End the job; its run saves first, except with `now`. A scheduler that does not answer is asked again."""
        if self._record is not None:
            try:
                backend_of(self._record).stop(self._record, self._status, now=now)
            except EnvironmentFault as e:
                self.text = f"{self.on} job {self._record.job}: {e.what}"

    def log(self, most: int = REASON_LINES) -> list[bytes]:
        """The last lines that the job has written. Raises EnvironmentFault."""
        lines: list[bytes] = []
        self._find()
        if self._record is not None:
            for line in backend_of(self._record).lines(self._record, folder_of(self.project, self._record.id)):
                if line is None:
                    break
                lines.append(line)
        return lines[-most:]

    def _find(self) -> None:
        if self._record is None:
            self._record = find_asked(self.project, Request(self.request, "line"), BACKENDS[self.on])

    def _end(self, record: LaunchRecord, status: JobStatus, answer: bytes) -> JobEnd:
        name = f"{self.on} job {record.job}"
        if status.is_gone:
            more = ", and nothing says how it ended" if self.on == "slurm" else ""
            why = f"{name} is gone: {status.why}{more}"
            return JobEnd(ExitCode.UNABLE, stopped=why, hint=f"aifx launch logs {record.id}")
        code = ExitCode.OK if status.state == "completed" else status.exit_code
        if status.state == "stopped":
            code = code or ExitCode.UNABLE  # Slurm has 0 of a job that was cancelled in the queue
        stopped = f"{name} was stopped" if status.state == "stopped" else ""
        return JobEnd(code, answer, stopped, f"{name} {status}", f"aifx launch logs {record.id}")


def submission(words: Sequence[str], on: Place, request: str) -> list[str]:
    """The words of `aifx launch` that submit a command. Asked again, they find the same job."""
    name = "line-" + re.sub("[^a-z0-9]+", "-", request.lower())[-30:].strip("-")  # of a JobSet
    options = ["--apply", "--name", name] if on == "k8s" else []
    return ["launch", on, "--no-follow", *options, "--request", request, "--", *words]
