"""A real Slurm of two nodes on this machine: one munged, one slurmctld, a slurmd for n1 and one for n2."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from held_port import held_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "scontrol", "sbatch", "squeue")
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NODES = ("n1", "n2")
WAIT_S = 300.0

CONFIGURATION = """\
ClusterName=aifx
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=nohold_on_prolog_fail,batch_sched_delay=0,sched_interval=2
ReturnToService=2
MessageTimeout=100
TCPTimeout=60
BatchStartTimeout=300
UnkillableStepTimeout=500
HealthCheckProgram={folder}/health-check
HealthCheckInterval=2
Prolog={folder}/prolog
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""


def missing() -> str:
    """Return the reason why this machine cannot start such a cluster; "" if it can."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=SBIN) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install munge slurmctld slurmd slurm-client"
    return "" if os.geteuid() == 0 else "slurmd runs as root"


class Cluster:
    """A running cluster of Slurm.

    Attributes:
        folder: of all its files, among them `health-check` and `prolog`, which Slurm runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, *command: str) -> str:
        environ = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "LC_ALL": "C"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert not done.returncode, f"{' '.join(command)}: {done.stderr}{self.logs()}"
        return done.stdout

    def node(self, name: str) -> dict[str, str]:
        """State and Reason of a node, as Slurm shows them; no Reason is an empty one."""
        lines = [line.strip() for line in self.ask("scontrol", "show", "node", name).splitlines()]
        state = next(line.split()[0].removeprefix("State=") for line in lines if line.startswith("State="))
        reason = next((line.removeprefix("Reason=") for line in lines if line.startswith("Reason=")), "")
        return {"State": state, "Reason": reason}

    def update(self, name: str, *changes: str) -> None:
        self.ask("scontrol", "update", f"NodeName={name}", *changes)

    def submit(self, script: str, *options: str) -> str:
        """The job's number."""
        output = str(self.folder / "job-%j.txt")
        return self.ask("sbatch", "--parsable", "-N1", "-o", output, *options, "--wrap", script).strip()

    def output(self, job: str) -> str:
        file = self.folder / f"job-{job}.txt"
        return file.read_text() if file.exists() else ""

    def wait(self, what: str, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < deadline, f"{what}: not in {WAIT_S:g} s{self.logs()}"
            time.sleep(0.25)

    def logs(self) -> str:
        files = sorted(self.folder.glob("*.log"))
        return "".join(f"\n--- {file.name}\n{file.read_text()[-2000:]}" for file in files)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts the daemons and ends them, each by its process."""
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    for name in ("health-check", "prolog"):
        set_program(folder / name, "exit 0")
    host = socket.gethostname().split(".")[0]
    slurm = Cluster(folder)
    with ExitStack() as daemons:
        ports = [daemons.enter_context(held_port()) for _ in range(3)]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, ports=ports))
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        daemons.enter_context(
            _daemon(folder, "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        )
        slurm.wait("munged's socket", (folder / "munge.socket").exists)
        daemons.enter_context(_daemon(folder, "slurmctld", "-D", "-f", str(folder / "slurm.conf")))
        for node in NODES:
            daemons.enter_context(_daemon(folder, "slurmd", "-D", "-f", str(folder / "slurm.conf"), "-N", node))
        slurm.wait("idle nodes", lambda: all(_state_of(slurm, node) == "IDLE" for node in NODES))
        try:
            yield slurm
        finally:  # without the daemons, nobody would end what a failed test leaves running
            with suppress(AssertionError):
                slurm.ask("scancel", "--full", "--signal=KILL", "--user=root")
                slurm.wait("the end of all jobs", lambda: not slurm.ask("squeue", "-h", "-t", "R,CG"))


def set_program(path: Path, body: str) -> None:
    """A script that Slurm runs, changed between two runs of it."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(f"#!/bin/sh\n{body}\n")
    beside.chmod(0o755)
    beside.replace(path)


def make_aifx(path: Path, options: str) -> Path:
    """An `aifx` that is always given `options`; `$SLURMD_NODENAME` in them is the node."""
    cache = f"AIFX_CACHE_DIR={path.parent}/cache"
    set_program(path, f'{cache} exec {sys.executable} -m aifx.commands.main "$@" {options}')
    return path


def _state_of(slurm: Cluster, node: str) -> str:
    with suppress(AssertionError):  # slurmctld is not there yet
        return slurm.node(node)["State"]
    return ""


@contextmanager
def _daemon(folder: Path, program: str, *arguments: str) -> Iterator[None]:
    path = shutil.which(program, path=SBIN)
    assert path is not None, program
    log = folder / f"{program}-{arguments[-1].strip('/').replace('/', '_')[-20:]}.out"
    with log.open("wb") as output:
        process = subprocess.Popen([path, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
