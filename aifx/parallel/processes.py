"""The place of this process in a job, from the variables that schedulers and launchers set. Imports no jax.

The address of process 0 is the only thing that processes must know of each other to meet (`aifx.parallel.connections`).
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aifx.core.digests import hash32
from aifx.core.environment import find_program
from aifx.core.errors import ConfigError, EnvironmentFault
from aifx.core.processes import run
from aifx.machine.present import nvidia_gpus, tpu_generations

OURS = ("AIFX_COORDINATOR", "AIFX_NUM_PROCESSES", "AIFX_PROCESS_ID")

PORT = 8476
"""In pods and virtual machines of their own, where nothing else listens."""

PORTS = range(20_000, 30_000)
"""On shared nodes, one per job. Linux assigns none of them by itself (net.ipv4.ip_local_port_range)."""

Metadata = Callable[[str], str | None]
"""Looks up an attribute of a Google Compute Engine instance; None if there is no such attribute."""

AGAIN = "run the same command again"
"""The hint if a process was lost."""


@dataclass(frozen=True)
class Membership:
    """One process of a job.

    Attributes:
        source: scheduler or launcher, for messages: "Slurm".
        coordinator: "host:port" at which process 0 listens.
        local_devices: indices of the GPUs that this process takes; None for all that it sees.
    """

    source: str
    coordinator: str
    num_processes: int
    process_id: int
    local_devices: tuple[int, ...] | None = None

    @property
    def host(self) -> str:
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.coordinator.rpartition(":")[2])


def detect(
    environ: Mapping[str, str],
    *,
    fqdn: str = "",
    num_gpus: int = 0,
    metadata: Metadata = lambda _: None,
) -> Membership | None:
    """This process's place in a job of several, or None for a process that trains alone.

    `AIFX_COORDINATOR`, `AIFX_NUM_PROCESSES` and `AIFX_PROCESS_ID` take precedence. `AIFX_COORDINATOR` alone replaces
    the address that a scheduler gives.

    Args:
        fqdn: the full name of this host, from which the name of an indexed Job's first pod follows.
        num_gpus: visible on this machine.
        metadata: of a Google Compute Engine instance.

    Raises ConfigError if variables contradict each other, or if one is missing.
    """
    coordinator = environ.get("AIFX_COORDINATOR")
    if coordinator is not None:
        _check_address("AIFX_COORDINATOR", coordinator)
    if "AIFX_PROCESS_ID" in environ:
        return _checked(_from_ours(environ))
    for find in (_open_mpi, _slurm, _gke_tpu, _jobset, _indexed_job):
        found = find(environ, fqdn, num_gpus)
        if found is not None:
            break
    else:
        found = _gce_tpu(environ, metadata)
    if found is None and (half := [name for name in OURS if name in environ]):
        raise _missing(half[0], next(name for name in OURS if name not in environ))
    if found is not None and coordinator is not None:
        found = Membership(found.source, coordinator, found.num_processes, found.process_id, found.local_devices)
    return _checked(found)


def started_by(environ: Mapping[str, str]) -> list[str]:
    """The command that starts this process: `aifx`, `aifx launch local -n N`, `aifx launch slurm -N NODES`."""
    if "AIFX_NODES" in environ and "SLURM_JOB_ID" in environ:
        return ["aifx", "launch", "slurm", "-N", environ["AIFX_NODES"]]
    launch = ["launch", "local", "-n", environ["AIFX_NUM_PROCESSES"]] if "AIFX_LAUNCHER" in environ else []
    return ["aifx", *launch]


def lone_warning(environ: Mapping[str, str]) -> str | None:
    """A hint that a process that trains alone may be meant to be one of several; None if nothing suggests that."""
    if _int(environ, "SLURM_NTASKS", 1) > 1 and "SLURM_STEP_NUM_TASKS" not in environ:
        return f"Slurm reserved {environ['SLURM_NTASKS']} tasks; without srun, this process trains alone"
    if "JOB_COMPLETION_INDEX" in environ and "AIFX_NUM_PROCESSES" not in environ:
        return "this is a pod of an indexed Job; without AIFX_NUM_PROCESSES, it trains alone"
    return None


def _from_ours(environ: Mapping[str, str]) -> Membership:
    for name in OURS:
        if name not in environ:
            raise _missing("AIFX_PROCESS_ID", name)
    coordinator, count, number = environ[OURS[0]], _int(environ, OURS[1]), _int(environ, OURS[2])
    return Membership("AIFX_PROCESS_ID", coordinator, count, number)


def _open_mpi(environ: Mapping[str, str], fqdn: str, num_gpus: int) -> Membership | None:
    """mpirun of Open MPI 4 and 5. Version 5 does not say where rank 0 is, unless all ranks are on one machine."""
    if "OMPI_COMM_WORLD_RANK" not in environ:
        return None
    rank, size = _int(environ, "OMPI_COMM_WORLD_RANK"), _int(environ, "OMPI_COMM_WORLD_SIZE")
    local_rank, local_size = _int(environ, "OMPI_COMM_WORLD_LOCAL_RANK"), _int(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    job = uri.partition(";")[0] or environ.get("PMIX_NAMESPACE", "")
    if local_size == size:
        host = "127.0.0.1"
    elif "SLURM_JOB_NODELIST" in environ:
        host = first_host(environ["SLURM_JOB_NODELIST"])
    elif found := re.search(r"tcp://([^,:]+)", uri):  # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
        host = found[1]
    elif "AIFX_COORDINATOR" in environ:
        host = ""
    else:
        what = "Open MPI does not say where its rank 0 is"
        why = "there are several hosts, and neither Slurm nor OMPI_MCA_orte_hnp_uri names the first"
        raise ConfigError(what, why, f"mpirun -x AIFX_COORDINATOR=FIRST-HOST:{PORTS[0]} ...")
    devices = _share_of_gpus(local_rank, local_size, _visible(environ, num_gpus), num_gpus)
    return Membership("Open MPI", f"{host}:{_port('mpi', job)}", size, rank, devices)


def _slurm(environ: Mapping[str, str], fqdn: str, num_gpus: int) -> Membership | None:
    """A task of an srun. The script of an sbatch, and the shell of an salloc, are no tasks."""
    if "SLURM_STEP_NUM_TASKS" not in environ:
        return None
    count = _int(environ, "SLURM_STEP_NUM_TASKS")
    rank, local = _int(environ, "SLURM_PROCID"), _int(environ, "SLURM_LOCALID")
    nodes = _text(environ, "SLURM_STEP_NODELIST")
    job, step = _text(environ, "SLURM_JOB_ID"), environ.get("SLURM_STEP_ID", "0")
    visible = _visible(environ, num_gpus)
    # If Slurm gave each task GPUs of its own, it sees fewer than the node has.
    on_node = _int(environ, "SLURM_GPUS_ON_NODE", visible)
    local_size = _tasks_here(environ.get("SLURM_STEP_TASKS_PER_NODE", "1"), _int(environ, "SLURM_NODEID", 0))
    devices = _share_of_gpus(local, local_size, visible, num_gpus) if visible == on_node else None
    return Membership("Slurm", f"{first_host(nodes)}:{_port('slurm', job, step)}", count, rank, devices)


def _gke_tpu(environ: Mapping[str, str], fqdn: str, num_gpus: int) -> Membership | None:
    """A pod with TPUs on Google Kubernetes Engine, also of several slices (MEGASCALE_...)."""
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if not workers or "TPU_WORKER_ID" not in environ:
        return None
    return _tpu_slice("GKE", workers.split(","), _int(environ, "TPU_WORKER_ID"), environ)


def _gce_tpu(environ: Mapping[str, str], metadata: Metadata) -> Membership | None:
    """A TPU virtual machine of Google Compute Engine, also of several slices."""
    if "TPU_SKIP_MDS_QUERY" in environ:
        return None
    number, endpoints = metadata("agent-worker-number"), metadata("worker-network-endpoints")
    if not number or not endpoints:
        return None
    # Each is a host, or in the older form name:id:ip.
    workers = [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
    lines = re.findall(r"^(MEGASCALE_\w+): *'?([^'\n]*)'?", metadata("tpu-env") or "", re.MULTILINE)
    return _tpu_slice("GCE", workers, int(number), {**dict(lines), **environ})


def _tpu_slice(source: str, workers: list[str], number: int, environ: Mapping[str, str]) -> Membership | None:
    slices, in_slice = _int(environ, "MEGASCALE_NUM_SLICES", 1), len(workers)
    which = _int(environ, "MEGASCALE_SLICE_ID", 0)
    first = environ.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
    host = first.split(":")[0]
    return Membership(source, f"{host}:{PORT}", slices * in_slice, which * in_slice + number)


def _jobset(environ: Mapping[str, str], fqdn: str, num_gpus: int) -> Membership | None:
    """A pod of a JobSet whose template sets these variables by the downward API, as xpk does (docs/launch.md)."""
    if "JOBSET_NAME" not in environ or "JOB_COMPLETION_INDEX" not in environ:
        return None
    job, index = _int(environ, "JOB_INDEX"), _int(environ, "JOB_COMPLETION_INDEX")
    in_job = _int(environ, "PROCESSES_IN_JOB")
    count = _int(environ, "AIFX_NUM_PROCESSES" if "AIFX_NUM_PROCESSES" in environ else "JAX_PROCESS_COUNT")
    name = _text(environ, "JOBSET_NAME")
    first = environ.get("JAX_COORDINATOR_ADDRESS") or f"{name}-{_text(environ, 'REPLICATED_JOB_NAME')}-0-0.{name}"
    return Membership("JobSet", f"{first.split(':')[0]}:{PORT}", count, job * in_job + index)


def _indexed_job(environ: Mapping[str, str], fqdn: str, num_gpus: int) -> Membership | None:
    """A pod of an indexed Kubernetes Job. Only its template knows the number of pods: AIFX_NUM_PROCESSES."""
    if "JOB_COMPLETION_INDEX" not in environ or "AIFX_NUM_PROCESSES" not in environ:
        return None
    index, count = _int(environ, "JOB_COMPLETION_INDEX"), _int(environ, "AIFX_NUM_PROCESSES")
    pod, _, domain = (fqdn or environ.get("HOSTNAME", "")).partition(".")
    if "AIFX_COORDINATOR" not in environ and (not domain or not pod.endswith(f"-{index}")):
        what = "this pod does not know the name of the first pod of its Job"
        why = f"its own name is {fqdn or 'unknown'}, and not JOB-{index}.SUBDOMAIN"
        hint = "set subdomain in the pod's template to the name of a headless Service: docs/launch.md"
        raise ConfigError(what, why, hint)
    return Membership("Kubernetes", f"{pod.removesuffix(str(index))}0.{domain}:{PORT}", count, index)


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `node[001-004,007],login` -> `node001`."""
    head = re.match(r"[^,\[]+(\[[^\]]*\][^,\[]*)*", nodes)  # not by ClusterShell, which would sort `n[3,1]`
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", head[0] if head else nodes)


def _tasks_here(tasks_per_node: str, node: int) -> int:
    """Tasks on the node of this number, from `SLURM_STEP_TASKS_PER_NODE`: "2(x3),1"."""
    counts: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(number)] * int(times or 1)
    return counts[node] if node < len(counts) else 1


def _visible(environ: Mapping[str, str], num_gpus: int) -> int:
    named = environ.get("CUDA_VISIBLE_DEVICES")
    return num_gpus if named is None else len([name for name in named.split(",") if name])


def _share_of_gpus(local_id: int, local_size: int, visible: int, num_gpus: int) -> tuple[int, ...] | None:
    """The GPUs of one of the processes of a machine. None if it takes all that it sees.

    A process that sees a part of the machine's GPUs, and fewer than there are processes, was given them for itself.
    """
    if local_size < 2 or visible < 2 or visible < min(local_size, num_gpus):
        return None
    if visible % local_size:
        what = f"{visible} GPUs cannot be divided among {local_size} processes"
        raise ConfigError(what, "each process takes the same number", "start as many processes as there are GPUs")
    each = visible // local_size
    return tuple(range(local_id * each, (local_id + 1) * each))


def _port(*job: str) -> int:
    """The same for all processes of a job, and most likely another for another job."""
    return PORTS[hash32(*job) % len(PORTS)]


def _checked(found: Membership | None) -> Membership | None:
    """`found`, unless it is a job of one process. Raises ConfigError if its number does not fit."""
    if found is None:
        return None
    if not 0 <= found.process_id < found.num_processes:
        what = f"{found.source} says that this is process {found.process_id} of {found.num_processes}"
        why = "processes count from 0, and there is at least one"
        raise ConfigError(what, why, "env | grep -E 'AIFX|SLURM|OMPI|TPU|JOB'")
    return found if found.num_processes > 1 else None


def _missing(there: str, name: str) -> ConfigError:
    why = "a process of a job needs all of AIFX_COORDINATOR, AIFX_NUM_PROCESSES and AIFX_PROCESS_ID"
    return ConfigError(f"{there} is set, and {name} is not", why, f"export {name}=..., or: unset {there}")


def _text(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        why = "other variables say that this is a process of a job, and this one is missing"
        raise ConfigError(f"{name} is not set", why, "env | grep -E 'AIFX|SLURM|OMPI|TPU|JOB'")
    return environ[name]


def _int(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Without a default, the variable must be set."""
    if default is not None and not environ.get(name):
        return default
    text = _text(environ, name)
    if not text.isdecimal():
        raise ConfigError(f"{name} = {text!r}", "it must be a whole number, 0 or more", f"unset {name}, or correct it")
    return int(text)


def _check_address(name: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{name} = {address!r}", "it must be HOST:PORT", f"export {name}=10.0.0.1:{PORTS[0]}")


METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
METADATA_S = 2.0


def detect_here() -> Membership | None:
    """`detect` for this process on this machine."""
    fqdn = socket.getfqdn() if "JOB_COMPLETION_INDEX" in os.environ else ""  # it may ask the name service
    metadata = _metadata if tpu_generations() else lambda _: None
    return detect(os.environ, fqdn=fqdn, num_gpus=nvidia_gpus(), metadata=metadata)


def resolve(host: str, limit_s: float) -> str:
    """The IP address of a host, asked for until it is known. Raises EnvironmentFault.

    The name of a Slurm node need not be one that the name service knows; Slurm itself has the address.
    """
    deadline = time.monotonic() + limit_s
    why = f"the name service does not answer within {limit_s:g} s"
    while True:
        found: list[Any] = []
        asking = threading.Thread(target=_ask, args=(host, found), daemon=True)  # it has no limit of its own
        asking.start()
        asking.join(max(deadline - time.monotonic(), 0.1))
        if found and isinstance(found[0], str):
            return found[0]
        if found:
            why = str(found[0])
        if (address := _slurm_address(host)) is not None:
            return address
        if time.monotonic() + 1 > deadline:
            hint = "export AIFX_COORDINATOR=ADDRESS:PORT names process 0 by its address"
            raise EnvironmentFault(f"the address of process 0, {host}, is not known", why, hint)
        time.sleep(1.0)


def _ask(host: str, found: list[Any]) -> None:
    try:
        families = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found.append(min(families, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    except (OSError, UnicodeError) as error:
        found.append(error)


def _slurm_address(node: str) -> str | None:
    if "SLURM_JOB_ID" not in os.environ or (program := find_program("scontrol")) is None:
        return None
    ended = run([program, "show", "node", node, "--oneliner"], limit_s=10)
    fields = dict(part.split("=", 1) for part in ended.output.decode("utf-8", "replace").split() if "=" in part)
    address = fields.get("NodeAddr", "")
    try:
        return str(socket.getaddrinfo(address, None)[0][4][0]) if address not in ("", node) else None
    except OSError:
        return None


def _metadata(name: str) -> str | None:
    import httpx

    try:
        answer = httpx.get(METADATA + name, headers={"Metadata-Flavor": "Google"}, timeout=METADATA_S)
    except httpx.HTTPError:
        return None
    return answer.text if answer.status_code == httpx.codes.OK else None
