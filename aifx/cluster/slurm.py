"""Slurm: handing a script to it, and asking what became of the job."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from aifx.cluster.hosts import ask_slurm
from aifx.cluster.jobs import JobStatus, LaunchRecord, State, read_events
from aifx.cluster.slurm_script import job_name
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode
from aifx.core.files import open_file

CHUNK = 1 << 16

STATES: dict[str, State] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_FED": "pending",
    "REQUEUE_HOLD": "pending",
    "SPECIAL_EXIT": "pending",
    "RESV_DEL_HOLD": "pending",
    "SUSPENDED": "pending",
    "RUNNING": "running",
    "SIGNALING": "running",
    "COMPLETING": "ending",
    "STAGE_OUT": "ending",
    "COMPLETED": "completed",
    "CANCELLED": "stopped",
}
"""Job states of slurm.schedmd.com/squeue.html. A job with another one has failed."""


def submit(script: Path, root: Path) -> tuple[str, str]:
    """Hand the script of a job to Slurm, to run in `root`. Returns the job's number and its cluster, which may be "".

    Raises EnvironmentFault if Slurm refuses it.
    """
    ended = ask_slurm("sbatch", "--parsable", str(script), cwd=root, without=_variables_over(script.read_text()))
    number, _, place = ended.output.decode("utf-8", "replace").strip().partition(";")
    if not ended.succeeded or not re.fullmatch("[0-9]+", number):
        why = ended.last_line.removeprefix("sbatch: error: ") or ended.how
        raise EnvironmentFault("Slurm did not take the job", why, f"sbatch {script} shows all of its messages")
    return number, place


class Slurm:
    """The scheduler that the programs of Slurm reach."""

    def status(self, record: LaunchRecord, folder: Path) -> JobStatus:
        ended = _end_of(folder)
        try:
            answer = ask_slurm("scontrol", "show", "job", "--oneliner", *_job(record))
        except EnvironmentFault as error:
            return ended or JobStatus("unknown", error.what)
        text = answer.output.decode("utf-8", "replace")
        if not answer.succeeded or f"JobName={job_name(record.id)} " not in text:
            is_forgotten = answer.succeeded or "Invalid job id" in "".join(answer.last_lines)
            return ended or JobStatus("unknown", "Slurm has forgotten it" if is_forgotten else answer.last_line)
        return _status(text, ended)

    def stop(self, record: LaunchRecord, status: JobStatus, *, now: bool) -> None:
        # The script passes SIGINT on to its processes, and does not go back to the queue.
        how = [] if now or status.state != "running" else ["--batch", "--signal=INT"]
        done = ask_slurm("scancel", *how, *_job(record))
        if not done.succeeded:
            raise EnvironmentFault(f"Slurm did not stop job {record.job}", done.last_line or done.how, "squeue --me")

    def lines(self, record: LaunchRecord, folder: Path) -> Iterator[bytes | None]:
        path, position, rest = folder / "output.log", 0, b""
        while True:
            part = _read_from(path, position)
            position += len(part)
            *lines, rest = (rest + part).split(b"\n")
            yield from lines
            if not part:
                yield None


BACKEND = Slurm()


def _status(text: str, ended: JobStatus | None) -> JobStatus:
    """The status by a line of `scontrol show job`, and by the last lines of the script, which say more."""

    def field(name: str) -> str:
        found = re.search(rf"(?:^|\s){name}=(\S*)", text)
        return "" if found is None or found[1] in ("None", "(null)") else found[1]

    slurms = field("JobState")
    state = STATES.get(slurms, "failed")
    if state == "pending":
        return JobStatus(state, field("Reason"))
    if state in ("running", "ending"):
        return JobStatus(state, nodes=field("NodeList"))
    if ended is not None:
        return replace(ended, state="stopped") if state == "stopped" else ended
    code, _, number = field("ExitCode").partition(":")
    exit_code = None if not code.isdecimal() else int(code) or (128 + int(number) if int(number or 0) else 0)
    return JobStatus(state, slurms, exit_code=exit_code)


def _end_of(folder: Path) -> JobStatus | None:
    """The status that the script wrote when it ended; None if it has not."""
    events = read_events(folder)
    if not events or events[-1].get("event") != "end" or not isinstance(code := events[-1].get("code"), int):
        return None
    if code == ExitCode.OK:
        return JobStatus("completed", exit_code=code)
    is_stopped = any(e.get("event") == "cancel" or e.get("signal") == "INT" for e in events[-3:])
    return JobStatus("stopped" if is_stopped else "failed", exit_code=code)


def _job(record: LaunchRecord) -> Sequence[str]:
    """The arguments that name a job. A record may have been written by anybody."""
    if not re.fullmatch("[0-9]{1,18}", record.job) or not re.fullmatch("[A-Za-z0-9_.-]*", record.place):
        raise AifxError(f"the record of launch {record.id} is damaged", f"job {record.job!r} on {record.place!r}")
    return [*(["--clusters", record.place] if record.place else []), record.job]


def _variables_over(script: str) -> set[str]:
    """The variables that sbatch would prefer to the options of the script."""
    options = re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)
    named = {"no-requeue": "REQUEUE", "requeue": "NO_REQUEUE", "time": "TIMELIMIT"}
    return {f"SBATCH_{name}" for option in options for name in (option.upper().replace("-", "_"), named.get(option))}


def _read_from(path: Path, position: int) -> bytes:
    """The content of a file from `position` on; nothing if there is no such file yet."""
    try:
        with os.fdopen(open_file(path), "rb") as file:
            file.seek(position)
            return file.read(CHUNK)
    except FileNotFoundError:
        return b""
