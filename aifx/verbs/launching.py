"""Commands as several processes, here or on a cluster."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aifx.cluster.kubernetes import to_yaml
from aifx.core.errors import AifxError, ConfigError, ExitCode, UsageError
from aifx.core.files import replace_file
from aifx.core.json_files import JsonLines, write_text
from aifx.core.project import Project, check_run_name, find_project
from aifx.core.requests import Request, find_request
from aifx.core.results import Result
from aifx.verbs.arguments import Settings, StrPath, overrides
from aifx.verbs.models import check_base

if TYPE_CHECKING:
    from aifx.cluster.jobs import JobStatus, LaunchRecord
    from aifx.cluster.launched import LaunchList
    from aifx.cluster.local import Attempt, Process
    from aifx.cluster.slurm import SlurmJob
    from aifx.config import Config

log = logging.getLogger(__name__)

COMMANDS = ("train", "eval")
ALONE = ("predict", "generate")
UNSHOWN = ("AIFX_LAUNCHER", "GLIBC_TUNABLES")

OnLine = Callable[[bytes], None]
OnProcessLine = Callable[[int, bytes], None]


class _Command(NamedTuple):
    """A command of aifx that is launched, and those of its options that a launch reads."""

    arguments: tuple[str, ...]
    run: str | None = None
    fork: str | None = None
    file: Path | None = None
    settings: tuple[str, ...] = ()

    @property
    def run_name(self) -> str:
        """The run that it trains or measures; "" for the one written last."""
        return self.fork or self.run or ""

    def check(self, project: Project) -> None:
        """Check settings and the run as far as they are known now. Raises UsageError, ConfigError."""
        from aifx.kinds import load_config

        if self.arguments[0] == "train":
            load_config(project, self.settings, file=self.file)
        else:
            project.existing_run(self.run)
        if self.run_name:
            check_run_name(self.run_name)

    def check_base(self, project: Project, *, waits_for: str = "", volume: str = "") -> None:
        """Raise UsageError, EnvironmentFault if the run or version that the training begins with is not there.

        Args:
            waits_for: other jobs, which may make it. If it is not there, a warning is logged.
            volume: of the cluster, which may have the run. If it is not here, a warning is logged.
        """
        from aifx.kinds import load_config

        run = project.run(self.run_name)
        if self.arguments[0] != "train" or run.exists() or self.fork is not None or "--refit" in self.arguments:
            return
        config = load_config(project, self.settings, file=self.file)
        try:
            check_base(config.finetune, config.apply_to(project))
        except UsageError as error:
            if waits_for:
                log.warning("%s; the job looks again when it starts, after %s", error.what, waits_for)
            elif volume and config.finetune.base_run is not None:
                log.warning("%s; it must be on the volume %s when the job starts", error.what, volume)
            else:
                raise


def _command(given: Sequence[str], example: str) -> _Command:
    """Parse the command to launch. Raises UsageError for one that does not run as several processes."""
    arguments = tuple(given[1:] if given and given[0] == "--" else given)
    if not arguments or arguments[0] not in COMMANDS:
        why = f"{' and '.join(COMMANDS)} run as several processes; other commands run as one, on all devices"
        alone = shlex.join(["aifx", *arguments]) if arguments and arguments[0] in ALONE else ""
        raise UsageError(f"{shlex.join(arguments[:1])!r} cannot be launched", why, alone or example)
    return _Command(arguments)


def _read(command: _Command, *, is_requested: bool = False) -> _Command:
    """The command with its options. Whether it has others that do not exist, it says itself when it starts.

    Args:
        is_requested: a program asked for the launch, and reads the answer from its folder.
    """
    arguments = command.arguments
    if "--help" in arguments or "-h" in arguments:
        raise UsageError("a page of help cannot be launched", "", f"aifx {arguments[0]} --help")
    if "--json" in arguments and not is_requested:
        raise UsageError("--json cannot be launched", "the answer goes to the job's log", "leave --json out")
    found: dict[str, list[str]] = {}
    for word, following in zip(arguments[1:], (*arguments[2:], ""), strict=False):
        option, equals, value = word.partition("=")
        if option in ("--run", "--fork", "--config", "--set"):
            found.setdefault(option, []).append(value if equals else following)
    run, fork, file = (found.get(option, [None])[-1] for option in ("--run", "--fork", "--config"))
    if arguments[0] == "train":
        run = run or "main"
    path, settings = Path(file) if file else None, tuple(found.get("--set", ()))
    return command._replace(run=run, fork=fork, file=path, settings=settings)


@dataclass(frozen=True)
class Ended(Result):
    """The end of processes that were launched.

    Attributes:
        code: exit code of the whole: that of the first failure.
        answer: the output of process 0.
    """

    code: int
    answer: str = ""

    @property
    def exit_code(self) -> ExitCode:
        return self.code  # type: ignore[return-value]  # of another program, which may be none of ours


def launch_local(
    command: Sequence[str],
    *,
    num_processes: int = 1,
    restarts: int = 0,
    on_line: OnProcessLine = lambda number, line: None,
    stop: Sequence[int] = (),
) -> Ended:
    """Start a command as several processes on this machine, and supervise them.

    Each process gets its share of the GPUs. If one fails, all end, and the last lines of the first failure are logged.

    Args:
        command: of aifx, with its options: `["train", "--run", "wide"]`.
        num_processes: number of processes.
        restarts: start all processes again after a loss or a preemption, so many times at most.
        on_line: called with the number of a process and a line that it has written.
        stop: numbers of signals. As soon as it has one, the processes get it.

    Example:
        >>> aifx.launch_local(["eval", "--run", "main", "--gate", "loss <= 99"], num_processes=1).code
        0
    """
    from aifx.cluster.local import processes

    asked = _command(command, f"aifx launch local -n {num_processes} train")
    for restart in range(restarts + 1):
        started = processes(asked.arguments, num_processes, os.environ)
        attempt = _run_attempt(started, stop, on_line)
        if attempt.code != ExitCode.PREEMPTED or stop or restart == restarts:
            break
        log.info("restart %d of %d", restart + 1, restarts)
    return Ended(attempt.code, attempt.answer.decode("utf-8", "replace"))


def launch_local_plan(command: Sequence[str], *, num_processes: int = 1) -> list[str]:
    """List the commands, with their variables, that `launch_local` would start.

    The arguments are those of `launch_local`.

    Example:
        >>> len(aifx.launch_local_plan(["train"], num_processes=2))
        2
    """
    from aifx.cluster.local import processes

    asked = _command(command, f"aifx launch local -n {num_processes} train")
    lines = []
    for one in processes(asked.arguments, num_processes, os.environ):
        variables = [f"{name}={value}" for name, value in one.variables.items() if name not in UNSHOWN]
        lines.append(f"{' '.join(variables)} {shlex.join(['aifx', *asked.arguments])}")
    return lines


def launch_node(
    command: Sequence[str],
    *,
    num_processes: int = 1,
    launch: str | None = None,
    on_line: OnProcessLine = lambda number, line: None,
    stop: Sequence[int] = (),
) -> Ended:
    """Start and supervise the processes of one machine of a job, once on each machine.

    The scheduler's variables say which machine of the job this is. If a process fails, those of this machine end:
    whoever started it starts all machines again.

    Args:
        command: of aifx, with its options.
        num_processes: number of processes on each machine.
        launch: whose starts are counted, in runs/.launched.
        on_line: called with the number of a process and a line that it has written.
        stop: numbers of signals. As soon as it has one, the processes get it.

    Example:
        >>> aifx.launch_node(["predict"])
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.cluster.jobs import ANSWER
    from aifx.cluster.launched import folder_of
    from aifx.cluster.local import processes
    from aifx.parallel.processes import detect_here

    asked = _command(command, f"aifx launch node -n {num_processes} train")
    here = detect_here()
    rank = 0 if here is None else here.process_id
    os.environ["AIFX_NODES"] = "1" if here is None else str(here.num_processes)  # for `started_by`
    if launch is not None and rank == 0 and (stopped := _begin(asked, launch)) is not None:
        return Ended(stopped)
    started = processes(asked.arguments, num_processes, os.environ, here)
    attempt = _run_attempt(started, stop, on_line, rank * num_processes, has_others=here is not None)
    if launch is not None and rank == 0 and "--json" in asked.arguments:
        replace_file(folder_of(find_project(), launch) / ANSWER, attempt.answer)
    return Ended(attempt.code, attempt.answer.decode("utf-8", "replace") if rank == 0 else "")


def _run_attempt(
    started: Sequence[Process],
    stop: Sequence[int],
    on_line: OnProcessLine,
    first: int = 0,
    *,
    has_others: bool = False,
) -> Attempt:
    """Run processes until all have ended, and log the one that failed first.

    Args:
        first: the number of the first of them within the job.
        has_others: other machines have processes too. If those of this one end with 75, the fault is elsewhere.
    """
    from aifx.cluster.local import last_lines, run_once

    attempt = run_once(started, stop, lambda index, line: on_line(first + index, line))
    if attempt.first is not None and attempt.code != ExitCode.VERDICT and not stop:
        ended = attempt.ended[attempt.first]
        if has_others and ended.code == ExitCode.PREEMPTED:
            return attempt
        lines, how = last_lines(ended), "it did not end with the others" if ended.cut else ended.how
        log.info("process %d failed first: %s%s", first + attempt.first, how, "; its last lines:" if lines else "")
        for line in lines:
            log.info("    %s", line)
    return attempt


def _begin(command: _Command, launch: str) -> int | None:
    """Note that the processes start. Returns an exit code instead if they must not: a signal came before them.

    Raises AifxError if the last starts brought the run no further.
    """
    from aifx.cluster.jobs import ANSWER, read_events
    from aifx.cluster.launched import make_folder
    from aifx.cluster.local import check_progress, newest_step

    project = find_project()
    folder = make_folder(project, launch)  # Kubernetes makes none
    (folder / ANSWER).unlink(missing_ok=True)
    events = read_events(folder)
    last_begin = max((i for i, event in enumerate(events) if event.get("event") == "begin"), default=0)
    signals = [event.get("signal") for event in events[last_begin:] if event.get("event") == "signal"]
    if signals:
        return int(ExitCode.INTERRUPTED if signals[-1] == "INT" else ExitCode.PREEMPTED)
    step = 0
    if command.arguments[0] == "train":
        run = project.run(_read(command, is_requested=True).run_name)
        check_progress(run, [e["step"] for e in events if e.get("event") == "start" and isinstance(e.get("step"), int)])
        step = newest_step(run)
    lines = JsonLines(folder / "events.jsonl")
    lines.append({"time": time.time(), "event": "start", "step": step, "host": socket.gethostname()})
    lines.close()
    return None


def launch_slurm(
    command: Sequence[str],
    *,
    settings: Settings = None,
    options: Sequence[str] = (),
    request: str | None = None,
    project: StrPath = ".",
) -> LaunchRecord:
    """Submit a command to Slurm as a script for sbatch.

    The job checks its machines, then starts the command on all of them. After a loss it starts it again on the same
    machines. Ahead of the time limit, the run saves and the job goes back to the queue. `launch_logs` follows the job.

    Args:
        command: of aifx, with its options: `["train", "--run", "wide"]`.
        settings: values over those of `[launch]` and `[slurm]`, by key: `{"launch.nodes": 2}`.
        options: other options of sbatch, "NAME" or "NAME=VALUE", in addition to `slurm.options`.
        request: an id. A second call with it returns the first one's job, and submits none.
        project: a folder in the project.

    Example:
        >>> aifx.launch_slurm(["predict", "rows.csv"])
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.cluster.launched import find_asked, requested_id, submitting

    found, asked = find_project(Path(project)), find_request(request, "launch slurm")
    if asked is None:
        return _submit_slurm(found, command, settings, options)
    with submitting(found, requested_id(found, asked)) as lock:
        if (record := find_asked(found, asked, "slurm")) is not None:
            return record
        return _submit_slurm(found, command, settings, options, asked, lock)


def _submit_slurm(
    project: Project,
    command: Sequence[str],
    settings: Settings,
    options: Sequence[str],
    asked: Request | None = None,
    lock: int | None = None,
) -> LaunchRecord:
    """Submit a job, between a record for the request, if there is one, and that of the launch, which is locked then."""
    from aifx.cluster.jobs import LaunchRecord
    from aifx.cluster.launched import make_folder, write_asked, write_record
    from aifx.cluster.slurm import submit

    job, script, run = _slurm_job(project, command, settings, options, asked)
    path = make_folder(project, job.id) / "script.sh"
    write_text(path, script)
    sizes = job.launch.nodes, job.launch.processes_per_node
    clusters = os.environ.get("SBATCH_CLUSTERS", "")
    record = LaunchRecord(job.id, "slurm", "", clusters, run, job.arguments, *sizes, time.time())
    if asked is not None:
        write_asked(project, record)
    number, place = submit(path, project.root, lock)
    record = replace(record, job=number, place=place)
    write_record(project, record)
    return record


def launch_slurm_script(
    command: Sequence[str], *, settings: Settings = None, options: Sequence[str] = (), project: StrPath = "."
) -> str:
    """Write the script that `launch_slurm` submits.

    The arguments are those of `launch_slurm`.

    Example:
        >>> "--nodes=2" in aifx.launch_slurm_script(["train"], settings={"launch.nodes": 2})
        True
    """
    return _slurm_job(find_project(Path(project)), command, settings, options)[1]


def _slurm_job(
    project: Project, command: Sequence[str], settings: Settings, options: Sequence[str], request: Request | None = None
) -> tuple[SlurmJob, str, str]:
    """The job, its script, and the name of its run. Raises UsageError, ConfigError."""
    from aifx.cluster.launched import folder_of, new_id, requested_id
    from aifx.cluster.slurm import SlurmJob, render_script
    from aifx.config.checks import refuse_conflicts
    from aifx.kinds import load_config

    asked = _read(_command(command, "aifx launch slurm train"), is_requested=request is not None)
    given = overrides(settings)
    config = load_config(project, given)
    if options:
        config = load_config(project, [*given, *overrides({"slurm.options": [*config.slurm.options, *options]})])
    refuse_conflicts(config, config.slurm.job_conflicts(config))
    setup = config.slurm.setup_script
    if setup and not (project.root / setup).is_file():
        why = f"there is no such file in {project.root}"
        raise ConfigError(f"slurm.setup_script = {setup!r} cannot be used", why, "aifx config keys slurm")
    asked.check(project)
    asked.check_base(project, waits_for=next((o for o in config.slurm.options if o.startswith("dependency=")), ""))
    launch = new_id(asked.run_name) if request is None else requested_id(project, request)
    folder = folder_of(project, launch).relative_to(project.root)
    id = "" if request is None else request.id
    job = SlurmJob(launch, project.root, folder, asked.arguments, config.launch, config.slurm, id)
    return job, render_script(job), asked.run_name


def launch_k8s(
    command: Sequence[str],
    *,
    name: str | None = None,
    settings: Settings = None,
    request: str | None = None,
    project: StrPath = ".",
) -> LaunchRecord:
    """Hand a command to Kubernetes as a JobSet, by kubectl.

    Each pod checks its node with aifx doctor, then runs processes that share its devices. If a pod is evicted or lost,
    all of them start again. `launch_logs` follows the job.

    Args:
        command: of aifx, with its options: `["train", "--run", "wide"]`.
        name: of the JobSet; by default the run's.
        settings: values over those of `[launch]` and `[k8s]`, by key: `{"launch.nodes": 2}`.
        request: an id. A second call with it returns the first one's JobSet, and creates none.
        project: a folder in the project.

    Example:
        >>> aifx.launch_k8s(["predict", "rows.csv"])
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.cluster.launched import find_asked, requested_id, submitting

    found, asked = find_project(Path(project)), find_request(request, "launch k8s")
    if asked is None:
        return _apply_jobset(found, command, name, settings)
    with submitting(found, requested_id(found, asked)) as lock:
        if (record := find_asked(found, asked, "kubernetes")) is not None:
            return record
        return _apply_jobset(found, command, name, settings, asked, lock)


def _apply_jobset(
    project: Project,
    command: Sequence[str],
    name: str | None,
    settings: Settings,
    request: Request | None = None,
    lock: int | None = None,
) -> LaunchRecord:
    """Create a JobSet, between a record for the request, if there is one, and that of the launch, which is locked then.
    """  # fmt: skip
    from aifx.cluster.jobs import LaunchRecord
    from aifx.cluster.kubernetes import apply, current_place, with_request
    from aifx.cluster.launched import make_folder, new_id, requested_id, write_asked, write_record

    if request is not None and name is None:  # one of another request must not be changed instead
        run_name = _read(_command(command, "aifx launch k8s train"), is_requested=True).run_name or "main"
        name = f"{run_name}-{requested_id(project, request)[-6:]}"
    asked, config, jobset = _jobset(project, command, name, settings, is_requested=request is not None)
    launch = new_id(asked.run_name) if request is None else requested_id(project, request)
    jobset = jobset if request is None else with_request(jobset, launch, request.id)
    metadata = jobset["metadata"]
    manifest = make_folder(project, launch) / "jobset.yaml"
    write_text(manifest, to_yaml(jobset))

    def place_in(current: str) -> str:
        context, _, namespace = current.rpartition("/")
        return f"{context}/{metadata.get('namespace', namespace)}"

    pods = sum(job["replicas"] * job["template"]["spec"]["completions"] for job in jobset["spec"]["replicatedJobs"])
    sizes = pods, config.launch.processes_per_node
    record = LaunchRecord(
        launch, "kubernetes", metadata["name"], "", asked.run_name, asked.arguments, *sizes, time.time()
    )
    if request is not None:
        write_asked(project, replace(record, place=place_in(current_place())))
    record = replace(record, place=place_in(apply(manifest, lock)))
    write_record(project, record)
    return record


def launch_k8s_manifest(
    command: Sequence[str], *, name: str | None = None, settings: Settings = None, project: StrPath = "."
) -> str:
    """Write the JobSet that `launch_k8s` hands to Kubernetes.

    The arguments are those of `launch_k8s`.

    Example:
        >>> settings = {"launch.image": "registry/aifx", "k8s.runs_claim": "runs"}
        >>> "kind: JobSet" in aifx.launch_k8s_manifest(["train"], settings=settings)
        True
    """
    return to_yaml(_jobset(find_project(Path(project)), command, name, settings)[2])


def launch_k8s_check(
    command: Sequence[str], *, name: str | None = None, settings: Settings = None, project: StrPath = "."
) -> str:
    """Let Kubernetes' API server check the JobSet of `launch_k8s`, and create nothing. Returns its name.

    The arguments are those of `launch_k8s`.

    Example:
        >>> aifx.launch_k8s_check(["predict", "rows.csv"])
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.cluster.kubernetes import check

    jobset = _jobset(find_project(Path(project)), command, name, settings)[2]
    check(to_yaml(jobset))
    return str(jobset["metadata"]["name"])


def _jobset(
    project: Project, command: Sequence[str], name: str | None, settings: Settings, *, is_requested: bool = False
) -> tuple[_Command, Config, dict[str, Any]]:
    """The command, the configuration with its settings, and the JobSet. Raises UsageError, ConfigError."""
    from aifx.cluster.kubernetes import render_jobset
    from aifx.kinds import load_config

    asked = _read(_command(command, "aifx launch k8s train"), is_requested=is_requested)
    if asked.arguments[0] == "train":  # the runs are on a volume of the cluster: one to measure need not be here
        asked.check(project)
    config = load_config(project, [*asked.settings, *overrides(settings)])
    jobset = render_jobset(config, name if name is not None else asked.run_name or "main", list(asked.arguments))
    asked.check_base(project, volume=str(config.k8s.runs_claim))
    return asked, config, jobset


def launch_ls(*, on_error: Callable[[AifxError], None] | None = None, project: StrPath = ".") -> LaunchList:
    """List what was launched on clusters from a project, with the state of each job.

    Args:
        on_error: called for a record that cannot be read, which is left out; by default it is logged.
        project: a folder in the project.

    Example:
        >>> aifx.launch_ls().launches
        []
    """
    from aifx.cluster.launched import list_launches

    return list_launches(find_project(Path(project)), on_error or (lambda error: log.warning("%s", error)))


@dataclass(frozen=True)
class FollowedJob(Result):
    """A job that is over."""

    record: LaunchRecord
    status: JobStatus

    @property
    def exit_code(self) -> ExitCode:
        unknown = {"completed": ExitCode.OK, "stopped": ExitCode.INTERRUPTED}.get(self.status.state, ExitCode.UNABLE)
        return self.status.exit_code or unknown  # type: ignore[return-value]  # of another program


def launch_logs(
    launch: str | None = None, *, on_line: OnLine = lambda line: None, project: StrPath = "."
) -> LaunchRecord:
    """Read what a job has written so far.

    Args:
        launch: its id, its run or its job; by default the newest.
        on_line: called with each line.
        project: a folder in the project.

    Example:
        >>> aifx.launch_logs()
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.cluster.launched import backend_of, find_record, folder_of

    found = find_project(Path(project))
    record = find_record(found, launch)
    for line in backend_of(record).lines(record, folder_of(found, record.id)):
        if line is None:
            break
        on_line(line)
    return record


def launch_follow(
    launch: str | None = None,
    *,
    on_line: OnLine = lambda line: None,
    on_status: Callable[[LaunchRecord, JobStatus], None] = lambda record, status: None,
    project: StrPath = ".",
) -> FollowedJob:
    """Read what a job writes until it is over. The exit code of the result is that of the job.

    Args:
        launch: its id, its run or its job; by default the newest.
        on_line: called with each line.
        on_status: called with each change of its state.
        project: a folder in the project.

    Example:
        >>> aifx.launch_follow()
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.cluster.launched import find_record, folder_of, follow

    found = find_project(Path(project))
    record = find_record(found, launch)
    try:
        status = follow(record, folder_of(found, record.id), on_line, lambda status: on_status(record, status))
    except KeyboardInterrupt:
        shows, ends = f"aifx launch logs {record.id} --follow shows it", f"aifx launch stop {record.id} ends it"
        log.info("job %s goes on; %s, %s", record.job, shows, ends)
        raise
    return FollowedJob(record, status)


def launch_stop(launch: str | None = None, *, now: bool = False, project: StrPath = ".") -> LaunchRecord:
    """Stop a job: its run saves a checkpoint, and the job does not go back to the queue.

    Args:
        launch: its id, its run or its job; by default the newest.
        now: end the job without waiting for a checkpoint.
        project: a folder in the project.

    Example:
        >>> aifx.launch_stop()
        Traceback (most recent call last):
        ...
        aifx.core.errors.UsageError: ...
    """
    from aifx.cluster.jobs import OVER
    from aifx.cluster.launched import backend_of, find_record, folder_of

    found = find_project(Path(project))
    record = find_record(found, launch)
    backend = backend_of(record)
    status = backend.status(record, folder_of(found, record.id))
    if status.state in OVER:
        raise UsageError(f"launch {record.id} is over: {status}", "", "aifx launch ls")
    backend.stop(record, status, now=now)
    return record
