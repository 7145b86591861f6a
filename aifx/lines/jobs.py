"""Jobs of stations that a cluster runs.

A try of such a station runs `aifx launch`, which submits the job and ends. The job is found again by the request that
it was submitted with, `ATTEMPT-JOB`. A try that was killed asks with the same request, so there is one job; a try after
a job that failed asks with the next one. The command in the job has the attempt as its request: a training goes on.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal

from aifx.cluster.hosts import NEVER, answers_until
from aifx.cluster.jobs import OVER, Backend, JobStatus, LaunchRecord, read_events
from aifx.cluster.launched import backend_of, find_asked, folder_of, requested_id
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode
from aifx.core.files import FolderBusy, exclusive
from aifx.core.os_errors import first_line
from aifx.core.project import Project
from aifx.core.requests import Request
from aifx.lines.file import Place

BACKENDS = {"slurm": "slurm", "k8s": "kubernetes"}
REASON_LINES = 20
"""Lines of a log among which the reason of a failure is looked for."""
ANSWER_S = 20.0
"""For a scheduler to answer."""
AT_ONCE = 8
"""Questions to one scheduler, and submissions."""
LOOK_S = 0.01
EVENT_S = 120.0
"""For an event that the script of a job writes on another node to be seen here."""
SENDS, SENT = b"sends\n", b"sent\n"
"""Lines in the file of a signal, from before and after it was sent."""


@dataclass(frozen=True)
class JobEnd:
    """The end of a job.

    Attributes:
        code: exit code of its command; None if the scheduler does not know it, and the answer has to say it.
        answer: what the command printed.
        stopped: why it has no exit code of its own, such as that a person cancelled it; or empty.
        why: the reason of a failure, by the scheduler or the job's log.
        hint: a command that shows more.
        last_line: of the log of a job that failed.
    """

    code: int | None
    answer: bytes = b""
    stopped: str = ""
    why: str = ""
    hint: str = ""
    last_line: str = ""


@dataclass(eq=False)
class Job:
    """A job that a station has submitted.

    Attributes:
        on: where it runs.
        request: that it was submitted with.
        text: what the scheduler last said of it.
        end: of the job, once it is known.
        stop: how a job that goes on is ended at the next look: its run saves first, or not.
        asked_at: when its scheduler was last asked, by `time.monotonic`.
    """

    project: Project
    on: Place
    request: str
    text: str = ""
    end: JobEnd | None = None
    stop: Literal["", "saves", "now"] = ""
    asked_at: float = -math.inf
    _record: LaunchRecord | None = None

    def is_due(self, pause_s: float) -> bool:
        """Whether the last question was so long ago."""
        return time.monotonic() - self.asked_at >= pause_s

    @property
    def launch(self) -> str:
        """The id of its launch."""
        return requested_id(self.project, Request(self.request, "line"))

    def is_recorded(self) -> bool:
        """Whether the record of its submission is there; if it was lost, `look` writes it again."""
        return (folder_of(self.project, self.launch) / "record.json").exists()

    def look(self, given_up: Event = NEVER) -> None:
        """Ask the scheduler, and note the end of the job. Without an answer in ANSWER_S, the job goes on."""
        with answers_until(time.monotonic() + ANSWER_S, given_up):
            try:
                self.end = self._look()
            except EnvironmentFault as e:
                self.text = f"{self.on} does not answer: {e.what}"
            except OSError as e:
                self.text = f"{self.on} was not asked: {first_line(e)}"
            except (AifxError, ValueError) as e:
                self.end = JobEnd(ExitCode.UNABLE, stopped=str(e).splitlines()[0], hint="aifx launch ls")
        self.asked_at = time.monotonic()

    def leave(self, why: str) -> None:
        """Note that the scheduler could not be asked."""
        self.text, self.asked_at = f"{self.on} was not asked: {why}", time.monotonic()

    def _look(self) -> JobEnd | None:
        self._find()
        if self._record is None:
            why = "no record of its job is left in runs/.launched, and the scheduler has none of its name"
            return JobEnd(ExitCode.UNABLE, stopped=why, hint="aifx launch ls")
        record, folder = self._record, folder_of(self.project, self._record.id)
        backend = backend_of(record)
        status = backend.status(record, folder)
        self.text = f"{self.on} job {record.job}: {status}"
        if status.state in OVER or status.is_gone:
            try:
                answer = backend.answer(record, folder)
            except EnvironmentFault as e:
                if e.transient:
                    raise
                if status.state == "completed":  # without its outputs, it has not succeeded
                    return JobEnd(ExitCode.UNABLE, stopped=f"{e.what}: {e.why}", hint=e.hint)
                answer = b""
            return self._end(record, status, answer)
        self._stop(backend, record, status, folder)
        return None

    def _stop(self, backend: Backend, record: LaunchRecord, status: JobStatus, folder: Path) -> None:
        """End the job, once in each way: a run that saves takes a second signal for one to stop at once.

        Other ticks read the job's events later, so a file says that it was sent one. If it says only that one was being
        sent, this process was killed meanwhile: a signal to save is sent again if no event of it has come by then.
        """
        saves = status.state == "ending" or any(event.get("signal") == "INT" for event in read_events(folder))
        # What nobody knows to run would be ended without a signal to save.
        if not self.stop or (self.stop == "saves" and (saves or status.state == "unknown")):
            return
        with suppress(FolderBusy), exclusive(folder / f"stopping-{self.stop}", 0.0) as handle:
            before, age_s = os.read(handle, 1000), time.time() - os.fstat(handle).st_mtime
            if before.endswith(SENT) or (before and self.stop == "saves" and age_s < EVENT_S):
                return
            os.write(handle, SENDS)
            try:
                backend.stop(record, status, now=self.stop == "now")
            except BaseException:
                os.ftruncate(handle, 0)
                raise
            os.write(handle, SENT)

    def log(self, most: int = REASON_LINES) -> list[bytes]:
        """The last lines that the job has written. Raises EnvironmentFault."""
        self._find()
        if self._record is None:
            return []
        return backend_of(self._record).last_lines(self._record, folder_of(self.project, self._record.id), most)

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
        lines: list[bytes] = []
        if code != ExitCode.OK and not stopped:
            with suppress(EnvironmentFault):
                lines = self.log()
        last = next((line.decode(errors="replace").strip() for line in reversed(lines) if line.strip()), "")
        return JobEnd(code, answer, stopped, f"{name} {status}", f"aifx launch logs {record.id}", last)


class Questions:
    """Questions to schedulers about jobs, side by side in threads: one that hangs keeps nobody waiting.

    Python waits for the threads before it ends, so `close` ends the questions that are open.
    """

    def __init__(self) -> None:
        self._open: dict[Job, Future[None]] = {}
        self._given_up = Event()

    def close(self) -> None:
        self._given_up.set()

    def ask(self, jobs: Iterable[Job], pause_s: float) -> bool:
        """Begin to ask about jobs that were last asked about so long ago. Returns whether answers were outstanding."""
        was_open = bool(self._open)
        for job in [job for job, future in self._open.items() if future.done()]:
            self._open.pop(job).result()
        due = [job for job in jobs if job not in self._open and job.end is None and job.is_due(pause_s)]
        for place in {job.on for job in due}:
            pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=f"aifx-{place}")
            for job in sorted((job for job in due if job.on == place), key=lambda job: job.asked_at):
                try:
                    self._open[job] = pool.submit(job.look, self._given_up)
                except RuntimeError as e:  # no thread can be started
                    job.leave(str(e))
            pool.shutdown(wait=False)
        return was_open or bool(self._open)


def look_at(jobs: Sequence[Job]) -> None:
    """Ask the schedulers about jobs, and wait for the answers."""
    with closing(Questions()) as questions:
        while questions.ask(jobs, math.inf):
            time.sleep(LOOK_S)


def submission(words: Sequence[str], on: Place, request: str) -> list[str]:
    """The words of `aifx launch` that submit a command. Asked again, they find the same job."""
    name = "line-" + re.sub("[^a-z0-9]+", "-", request.lower())[-30:].strip("-")  # of a JobSet
    options = ["--apply", "--name", name] if on == "k8s" else []
    return ["launch", on, "--no-follow", *options, "--request", request, "--", *words]
