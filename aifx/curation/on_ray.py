"""The tasks of a step as tasks of Ray, on this machine or on a running cluster.

Ray gets numbers of tasks and gives back counts. Rows stay in files of the folder in which the step works, which all
nodes of a cluster must see. A dataset of Ray Data would carry nothing but the numbers, start three processes of its
own, and repeat a task that kills its process forever.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from aifx.core.environment import environment
from aifx.core.errors import EnvironmentFault
from aifx.core.extras import install_command
from aifx.core.lifecycle import own_handlers
from aifx.core.os_errors import first_line
from aifx.curation.databases.query import SECRETS
from aifx.curation.execution import run_task
from aifx.curation.step import Limits, Step
from aifx.curation.task_results import TaskResult

RETRIES = 3  # of a task whose process or node dies
OBJECT_STORE_BYTES = 128 << 20  # it holds the step
ANSWER_S = 10.0  # in which a running cluster accepts a connection
LONGEST_SOCKET_FOLDER = 40  # Ray adds 66 characters, and the path of a Unix socket has at most 107
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": str(RETRIES),  # by default forever
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # below `uv run`, Ray would upload the working directory
}
LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's way to bind to loopback; otherwise it replaces 127.0.0.1
    "RAY_AUTH_MODE": "token",
    "RAY_gcs_server_port_wait_time_s": "120",  # by default 30, which a busy machine may exceed
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # otherwise Ray writes one to the user's home
}


@dataclass(frozen=True)
class OnRay:
    """Runs tasks by Ray.

    Attributes:
        address: of a running cluster, or "auto". With "local", Ray starts on this machine, bound to loopback, and ends
            with the step. A process that is connected to Ray already uses that session.
        most: tasks at a time on a running cluster; by default as many as it has CPUs and memory for.
    """

    address: str = "local"
    most: int | None = None

    def __call__(self, step: Step, missing: list[int], work: Path, limits: Limits) -> Iterator[tuple[int, TaskResult]]:
        """The result of each missing task. Raises what a task raised, EnvironmentFault if Ray cannot run tasks."""
        if not missing:
            return
        share = Limits(limits.memory_bytes // limits.workers, 1)
        with session(self.address, limits) as ray:
            _check_nodes(ray, share.memory_bytes)
            remote = ray.remote(num_cpus=1, memory=share.memory_bytes, max_retries=RETRIES)(_run)
            shared, left = ray.put(step), list(reversed(missing))
            running: dict[Any, int] = {}
            try:
                while left or running:
                    while left and len(running) < (self.most or len(missing)):
                        running[remote.remote(shared, work, share, left[-1])] = left[-1]
                        left.pop()
                    (ended,), _ = ray.wait(list(running))
                    result = _result(ray, ended, step, running[ended])
                    yield running.pop(ended), result
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)


def _run(step: Step, work: Path, limits: Limits, task: int) -> TaskResult:
    """Run a task in a process of Ray."""
    if not work.is_dir():
        why = f"{socket.gethostname()} does not see {work}, and all nodes of Ray must"
        raise EnvironmentFault("the data sets are not on a shared disk", why, "--root /shared/datasets")
    return run_task(step, work, limits, task)


def _result(ray: Any, reference: Any, step: Step, task: int) -> TaskResult:
    try:
        result: TaskResult = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        what = f"{step.tasks()[task][0]}: aifx data {step.name} ended {RETRIES + 1} times without a result"
        hint = "run the same command again with --workers 1, or with more --memory"
        raise EnvironmentFault(what, first_line(error), hint) from error
    return result


@contextmanager
def session(address: str, limits: Limits) -> Iterator[Any]:
    """The package `ray`, connected: to this process's session if there is one. See `OnRay.address`.

    Raises EnvironmentFault if the extra is not installed, or if Ray does not answer.
    """
    is_local = address == "local"
    passwords = dict.fromkeys(SECRETS)  # of databases, from which no task of Ray reads
    with environment({**ENVIRONMENT, **passwords, **(LOCAL_ENVIRONMENT if is_local else {})}):
        try:
            import ray
        except ImportError as error:
            raise EnvironmentFault("--on ray needs Ray", str(error), install_command("ray")) from None
        if ray.is_initialized():
            yield ray
            return
        folder = _socket_folder() if is_local else None
        others = set(psutil.Process().children(recursive=True))
        try:
            with own_handlers():  # Ray replaces that of SIGTERM
                _connect(ray, address, folder, limits)
            yield ray
        finally:
            started = set(psutil.Process().children(recursive=True)) - others
            ray.shutdown()
            if folder is not None:
                for process in started:  # Ray's agents may outlive it by a minute
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(started, timeout=10)
                shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, address: str, folder: Path | None, limits: Limits) -> None:
    local = {
        "num_cpus": limits.workers,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "_memory": limits.memory_bytes,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": str(folder),
    }
    host, _, port = address.rpartition(":")
    try:
        if folder is None and host and port.isdecimal():
            socket.create_connection((host, int(port)), ANSWER_S).close()  # ray.init would try for many minutes
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **(local if folder is not None else {}))
    except Exception as error:  # Ray raises also plain Exception
        if folder is not None:
            raise EnvironmentFault("Ray did not start", first_line(error), "--on local") from error
        hint = f"ray status --address {address}"
        raise EnvironmentFault(f"Ray does not answer at {address}", first_line(error), hint) from error


def _socket_folder() -> Path:
    """A new folder of this user for the files of Ray, with a path that is short enough for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="aifx-ray-"))
    if len(str(folder)) <= LONGEST_SOCKET_FOLDER:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="aifx-ray-", dir="/tmp"))


def _check_nodes(ray: Any, memory_bytes: int) -> None:
    """Raise EnvironmentFault if no node can run a task, for which Ray would wait forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= 1), default=0)
    if largest < memory_bytes:
        have = f"the largest node with a CPU has {largest / 2**20:.0f} MiB"
        why = f"a task needs 1 CPU and {memory_bytes >> 20} MiB, and {have}"
        raise EnvironmentFault("no node of Ray can run a task", why, "--memory 1GB, or --workers N to divide it")
