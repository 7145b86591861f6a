"""Slurm: the sbatch script of `aifx launch slurm`, handing it over, and the state of the job.

The script is as a user of Slurm would write it by hand. Nothing in it can be taken for more than a value: `#SBATCH`
lines hold words that match a pattern (`aifx.config.launch_section`), and the shell gets everything else through
`shlex.quote`, on one line.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from aifx.cluster.hosts import ask_slurm, refusal
from aifx.cluster.jobs import ANSWER, JobStatus, LaunchRecord, State, read_events
from aifx.config.launch_section import LaunchSection, SlurmSection
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode, UsageError
from aifx.core.files import open_file, read_end, read_file
from aifx.core.processes import aifx_command
from aifx.core.sanitize import escape_controls

CHUNK = 1 << 16
LINE_BYTES = 1 << 20
"""A longer line comes in parts."""
END_BYTES = 1 << 20
"""Of the log, from which its last lines are read."""
LOG = "output.log"
JOB = "job"
"""The file in which a job that a request made writes its number."""

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


def submit(script: Path, root: Path, holds: int | None = None) -> tuple[str, str]:
    """Hand the script of a job to Slurm, to run in `root`. Returns the job's number and its cluster, which may be "".

    sbatch keeps the descriptor `holds` open: if aifx is killed, the lock of the launch is held until sbatch has ended.
    Raises EnvironmentFault if Slurm refuses it.
    """
    without = _variables_over(script.read_text())
    ended = ask_slurm("sbatch", "--parsable", str(script), cwd=root, without=without, holds=holds)
    number, _, place = ended.output.decode("utf-8", "replace").strip().partition(";")
    if not ended.succeeded or not re.fullmatch("[0-9]+", number):
        why = ended.last_line.removeprefix("sbatch: error: ") or ended.how
        hint = f"sbatch {script} shows all of its messages"
        raise refusal("Slurm did not take the job", ended, why, hint)
    return number, place


def find_job(record: LaunchRecord, folder: Path) -> str | None:
    """The number of the job of a launch, which Slurm knows, or which the job wrote when it began; None if neither does.

    Raises EnvironmentFault if Slurm does not answer.
    """
    with suppress(FileNotFoundError):
        if re.fullmatch("[0-9]{1,18}", number := read_file(folder / JOB).decode("utf-8", "replace").strip()):
            return number
    where = [f"--clusters={record.place}"] if record.place else []
    name = job_name(record.id)
    ended = ask_slurm("squeue", "--me", "--noheader", "--states=all", f"--name={name}", "--format=%A", *where)
    if not ended.succeeded:
        what, why = "Slurm does not say whether the job was submitted", ended.last_line or ended.how
        raise EnvironmentFault(what, why, f"squeue --name={name}    (then run the same command again)", transient=True)
    return min(
        re.findall("^ *([0-9]+) *$", ended.output.decode("utf-8", "replace"), re.MULTILINE), key=int, default=None
    )


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
            why = "Slurm has forgotten it" if is_forgotten else answer.last_line
            return ended or JobStatus("unknown", why, is_gone=is_forgotten)
        return _status(text, ended)

    def stop(self, record: LaunchRecord, status: JobStatus, *, now: bool) -> None:
        # The script passes SIGINT on to its processes, and does not go back to the queue.
        how = [] if now or status.state != "running" else ["--batch", "--signal=INT"]
        done = ask_slurm("scancel", *how, *_job(record))
        if not done.succeeded:
            raise refusal(f"Slurm did not stop job {record.job}", done, done.last_line or done.how, "squeue --me")

    def lines(self, record: LaunchRecord, folder: Path) -> Iterator[bytes | None]:
        path, position, rest = folder / LOG, 0, b""
        while True:
            part = _read_from(path, position)
            position += len(part)
            *lines, rest = (rest + part).split(b"\n")
            yield from lines
            if len(rest) > LINE_BYTES:
                yield rest
                rest = b""
            if not part:
                yield None

    def last_lines(self, record: LaunchRecord, folder: Path, most: int) -> list[bytes]:
        try:
            data = read_end(folder / LOG, END_BYTES)
        except FileNotFoundError:
            return []
        return data.removesuffix(b"\n").rsplit(b"\n", most)[-most:] if data else []

    def answer(self, record: LaunchRecord, folder: Path) -> bytes:
        with suppress(FileNotFoundError):
            return read_file(folder / ANSWER)
        return b""


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


@dataclass(frozen=True)
class SlurmJob:
    """The parts of a job's script.

    Attributes:
        id: of the launch.
        root: the project's folder.
        folder: of the launch, relative to `root`; the job writes its output and events there.
        arguments: of aifx, such as `train --run wide`.
        request: the id that it is asked for with; "" for none.
    """

    id: str
    root: Path
    folder: Path
    arguments: tuple[str, ...]
    launch: LaunchSection
    slurm: SlurmSection
    request: str = ""


def job_name(launch: str) -> str:
    """The name of a launch in Slurm."""
    return f"aifx-{launch}"


def render_script(job: SlurmJob) -> str:
    """The script. Raises UsageError for a path or an argument that does not fit on a line."""
    return "\n".join(["#!/bin/bash", *_directives(job), "", *_settings(job), "", BODY.strip(), ""])


def _directives(job: SlurmJob) -> Iterator[str]:
    launch, slurm = job.launch, job.slurm
    options = [
        f"job-name={job_name(job.id)}",
        f"nodes={launch.nodes}",
        "ntasks-per-node=1",
        *([f"gpus-per-node={launch.gpus_per_node}"] if launch.gpus_per_node else []),
        *charging(slurm),
        f"signal=B:TERM@{slurm.signal_ahead_s}",
        "requeue" if slurm.requeue else "no-requeue",
        f"output={job.folder}/{LOG}",
        "open-mode=append",
        *([f"comment=aifx-request-{job.request}"] if job.request else []),
        *slurm.options,
    ]
    return (f"#SBATCH --{option}" for option in options)


def charging(slurm: SlurmSection) -> list[str]:
    """The options of sbatch that name who pays, where the job runs and how long it may."""
    named = {"account": slurm.account, "partition": slurm.partition, "qos": slurm.qos, "time": slurm.time_limit}
    return [f"{name}={value}" for name, value in named.items() if value]


def environment(launch: LaunchSection, slurm: SlurmSection, root: Path) -> Iterator[str]:
    """The lines that enter the project's folder and set what its processes run in."""
    yield f"cd {quoted([str(root)])} || exit 2"
    if slurm.setup_script:
        yield f". {quoted([str(Path(root, slurm.setup_script))])} || exit 2"
    for variable in launch.environment:
        name, _, value = variable.partition("=")
        yield f"export {name}={quoted([value])}"


def _settings(job: SlurmJob) -> Iterator[str]:
    """The lines that define the commands of the body."""
    launch = job.launch
    yield from environment(launch, job.slurm, job.root)
    if job.request:
        yield f'echo "$SLURM_JOB_ID" > {quoted([f"{job.folder}/{JOB}"])}'
    yield f"events={quoted([f'{job.folder}/events.jsonl'])}"
    yield f"on_nodes=({quoted(srun(launch, job.slurm, job.root, launch.nodes))})"
    yield f"aifx=({quoted(program(job.launch, job.slurm))})"
    supervise = ["launch", "node", "--id", job.id, "-n", str(launch.processes_per_node), "--", *job.arguments]
    yield f"supervise=({quoted(supervise)})"
    yield f"doctor={_yes(launch.doctor)} restarts={launch.restarts} requeue={_yes(job.slurm.requeue)}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def srun(launch: LaunchSection, slurm: SlurmSection, root: Path, nodes: int) -> list[str]:
    """The command that starts a program once on each node. Raises UsageError for a folder that cannot be mounted."""
    # Slurm would bind a task of one CPU to it. srun does not take over --cpus-per-task from sbatch.
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
    command += [f"--{option}" for option in slurm.options if option.startswith("cpus-per-task=")]
    if launch.image:
        mounts = ",".join([f"{root}:{root}", *launch.mounts])
        if any(mark in str(root) for mark in ",:"):
            raise UsageError(f"{root} cannot be mounted", "its name has a comma or a colon", "rename the folder")
        command += [f"--container-image={launch.image}", f"--container-mounts={mounts}"]
        command += [f"--container-workdir={root}"]
    return command


def program(launch: LaunchSection, slurm: SlurmSection) -> list[str]:
    """The command by which nodes start aifx: by their own PATH if the job brings an environment, otherwise as here."""
    if launch.image or slurm.setup_script:
        return ["aifx"]
    beside = Path(sys.executable).with_name("aifx")
    return [str(beside)] if beside.is_file() else aifx_command()


def quoted(words: Sequence[str]) -> str:
    """Words as bash reads them back, on one line. Raises UsageError for control characters."""
    for word in words:
        if any(ord(mark) < 32 or ord(mark) == 127 for mark in word):
            why = "it holds control characters, and a script is made of lines"
            raise UsageError(f"{escape_controls(word)!r} cannot be launched", why, "set it in aifx.toml instead")
    return shlex.join(words)


BODY = r"""
step="" stopped="" missed=""

event() { printf '{"time": %s, "event": "%s"%s}\n' "$(date +%s)" "$1" "$2" >> "$events"; }

# SIGTERM comes ahead of the time limit, SIGINT from `aifx launch stop`, to this script alone, which passes them on.
on_signal() {
    stopped=$1
    event signal ", \"signal\": \"$1\""
    if [ -n "$step" ]; then pass_on "$1"; else missed=$1; fi
}
pass_on() { scancel --signal="$1" "$SLURM_JOB_ID" 2> /dev/null; }
trap 'on_signal TERM' TERM
trap 'on_signal INT' INT

# Run a command on all nodes. Bash handles a signal only while it waits, and then waits no longer.
run() {
    "${on_nodes[@]}" "$@" &
    step=$!
    if [ -n "$missed" ]; then pass_on "$missed"; missed=""; fi  # it came while the step was being started
    while kill -0 "$step" 2> /dev/null; do wait "$step"; done
    wait "$step"
    code=$?
    step=""
}

check='report=$("$@" 2>&1); code=$?; [ $code -ne 1 ] || echo "$report" >&2
[ $code -eq 0 ] || echo "aifx doctor on ${SLURMD_NODENAME:-$HOSTNAME}: exit $code" >&2; [ $code -ne 1 ]'
if [ $doctor = yes ]; then
    run --kill-on-bad-exit=0 bash -c "$check" doctor "${aifx[@]}" doctor
    if [ $code -ne 0 ] && [ -z "$stopped" ]; then
        echo "error: a node is not healthy, and nothing was started; sbatch --exclude leaves it out" >&2
        event end ', "code": 2'
        exit 2
    fi
fi

event begin
start=0 code=75
while [ -z "$stopped" ]; do
    run --kill-on-bad-exit=1 "${aifx[@]}" "${supervise[@]}"
    if [ $code -ge 128 ] && [ "$stopped" != INT ]; then code=75; fi
    if [ $code -ne 75 ] || [ $start -ge $restarts ]; then break; fi
    start=$((start + 1))
    if [ -z "$stopped" ]; then echo "restart $start of $restarts on these nodes" >&2; fi
done

if [ $code -eq 75 ] && [ $requeue = yes ] && [ "$stopped" != INT ]; then
    trap '' TERM INT
    # It is ending if a person cancelled it, or if Slurm preempts it and brings it back by itself.
    if [ "$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then
        event cancel
    else
        event requeue
        scontrol requeue "$SLURM_JOB_ID" && exit 75
    fi
fi
event end ", \"code\": $code"
exit $code
"""
