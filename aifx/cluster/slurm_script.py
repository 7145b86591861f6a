"""The sbatch script of `aifx launch slurm`, as a user of Slurm would write it by hand.

Nothing in it can be taken for more than a value: `#SBATCH` lines hold words that match a pattern
(`aifx.config.launch_section`), and the shell gets everything else through `shlex.quote`, on one line.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aifx.config.launch_section import LaunchSection, SlurmSection
from aifx.core.errors import UsageError
from aifx.core.processes import aifx_command
from aifx.core.sanitize import escape_controls


@dataclass(frozen=True)
class SlurmJob:
    """The parts of a job's script.

    Attributes:
        id: of the launch.
        root: the project's folder.
        folder: of the launch, relative to `root`; the job writes its output and events there.
        arguments: of aifx, such as `train --run wide`.
    """

    id: str
    root: Path
    folder: Path
    arguments: tuple[str, ...]
    launch: LaunchSection
    slurm: SlurmSection


def job_name(launch: str) -> str:
    """The name of a launch in Slurm."""
    return f"aifx-{launch}"


def render(job: SlurmJob) -> str:
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
        f"output={job.folder}/output.log",
        "open-mode=append",
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
