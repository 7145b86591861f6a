"""The tasks of a step as an array job of Slurm.

The folder in which the step works must be one that all nodes see. It holds the step for the job to read, and what each
task made; this process waits for that. A job that is killed, requeued or cancelled loses the tasks that were running.
"""

from __future__ import annotations

import os
import pickle
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aifx.cluster.hosts import ask_slurm
from aifx.cluster.slurm import charging, environment, program, quoted, srun, submit
from aifx.config.launch_section import LaunchSection, SlurmSection
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.files import read_file, replace_file
from aifx.core.json_files import write_json, write_text
from aifx.core.parsing import parse_json
from aifx.curation.execution import read_result, run_task
from aifx.curation.step import Limits, Step
from aifx.curation.task_results import TaskResult
from aifx.curation.work_folders import holding_work

TASKS, SCRIPT, OUTPUT, FAILED, JOB = "tasks.pickle", "job.sh", "output.log", "failed.json", "job"
BYTES_PER_ELEMENT = 256 << 20  # an element takes a second or two to start
MOST_ELEMENTS = 1000  # Slurm's MaxArraySize is 1001 by default
POLL_S = 1.0
SEEN_AFTER_S = 10.0  # a file system over a network may show files late


@dataclass(frozen=True)
class OnSlurm:
    """Runs tasks by Slurm, with the settings of `[launch]` and `[slurm]`.

    Attributes:
        root: the folder in which the job starts.
        elements: of the array; by default one for every 256 MB.
    """

    launch: LaunchSection
    slurm: SlurmSection
    root: Path
    elements: int | None = None

    def __call__(self, step: Step, missing: list[int], work: Path, limits: Limits) -> Iterator[tuple[int, TaskResult]]:
        """The result of each missing task. Raises what a task raised, EnvironmentFault if the job ended without one."""
        if not missing:
            return
        tasks = step.tasks()
        _cancel_job_of(work)
        (work / FAILED).unlink(missing_ok=True)
        replace_file(work / TASKS, pickle.dumps((step, missing, Limits(limits.memory_bytes, 1))))
        (work / TASKS).chmod(0o600)
        size = sum(tasks[task][1] for task in missing)
        count = min(self.elements or 1 + size // BYTES_PER_ELEMENT, len(missing), MOST_ELEMENTS)
        write_text(work / SCRIPT, self.script(step.name, work, count))
        number, place = submit(work / SCRIPT, self.root)
        job = [*(["--clusters", place] if place else []), number]
        write_text(work / JOB, " ".join(job))
        try:
            yield from self._waited(set(missing), work, job)
        except BaseException:
            _cancel_job_of(work)
            raise

    def script(self, name: str, work: Path, count: int) -> str:
        """The array job, as a user of Slurm would write it by hand."""
        options = [
            f"job-name=aifx-data-{name}",
            f"array=0-{count - 1}",
            "nodes=1",
            "ntasks=1",
            *charging(self.slurm),
            "requeue",
            f"output={work / OUTPUT}",
            "open-mode=append",
            *self.slurm.options,
        ]
        command = [*program(self.launch, self.slurm), "data", "run-tasks", str(work)]
        lines = [f"#SBATCH --{option}" for option in options]
        start = f"exec {quoted([*srun(self.launch, self.slurm, self.root, 1), *command])}"
        return "\n".join(["#!/bin/bash", *lines, "", *environment(self.launch, self.slurm, self.root), start, ""])

    def _waited(self, missing: set[int], work: Path, job: list[str]) -> Iterator[tuple[int, TaskResult]]:
        ended_at: float | None = None
        while missing:
            for task in sorted(missing):
                if (result := read_result(work, task)) is not None:
                    missing.discard(task)
                    yield task, result
            if not missing:
                return
            if (failure := _read_failure(work)) is not None:
                raise failure
            if ended_at is None and not _is_queued(job):
                ended_at = time.monotonic()
            if ended_at is not None and time.monotonic() - ended_at > SEEN_AFTER_S:
                why = _last_line(work / OUTPUT) or "its elements were cancelled, or ended by a signal"
                what = f"Slurm's job {job[-1]} ended without {len(missing)} of its tasks"
                raise EnvironmentFault(what, why, "run the same command again: it does what is missing")
            time.sleep(POLL_S)


def run_share(work: Path, element: int, elements: int) -> None:
    """Run every task of a job's element that is not done. Raises what a task raises, which the job's owner reads."""
    step, missing, limits = _read_tasks(work / TASKS)
    with holding_work(work):
        for task in missing[element::elements]:
            if read_result(work, task) is None:
                try:
                    run_task(step, work, limits, task)
                except AifxError as error:
                    write_json(work / FAILED, error.document())
                    raise


def _read_tasks(path: Path) -> tuple[Step, list[int], Limits]:
    """Load the tasks of a job. Raises EnvironmentFault if somebody else may have written them: a pickle is code."""
    found = path.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EnvironmentFault(f"{path} cannot be trusted", "another user may have written it", f"ls -l {path}")
    step, missing, limits = pickle.loads(read_file(path))
    return step, missing, limits


def _cancel_job_of(work: Path) -> None:
    """Cancel the job that a process submitted which has ended since, if there is one."""
    with suppress(FileNotFoundError):
        job = read_file(work / JOB).decode().split()
        with suppress(AifxError):
            ask_slurm("scancel", *job)
        (work / JOB).unlink()


def _is_queued(job: list[str]) -> bool:
    *cluster, number = job
    found = ask_slurm("squeue", "--noheader", *cluster, f"--jobs={number}", "--format=%T")
    return bool(found.output.strip()) if found.succeeded else "Invalid job id" not in "".join(found.last_lines)


def _read_failure(work: Path) -> AifxError | None:
    try:
        found = parse_json(read_file(work / FAILED))
    except (FileNotFoundError, ValueError):
        return None
    assert isinstance(found, dict)
    return AifxError(str(found["what"]), str(found["why"]), str(found["hint"]))


def _last_line(path: Path) -> str:
    with suppress(FileNotFoundError):
        lines = [line for line in path.read_bytes()[-4096:].decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""
    return ""
