"""Runs over the two nodes of a real Slurm, whose names no name service knows.

`aifx launch slurm` starts them. Each run that something happened to ends in the state of the one that nothing happened
to, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import inprocess
import pytest
from effort import seed_of_commit
from held_run import held_at
from slurm_cluster import Cluster, cluster, missing

from aifx.core.json_files import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

TINY = Path(__file__).parents[1] / "training" / "tiny.py"
TOML = """\
[task]
kind = "tiny:TinyTask"
[data]
read_s = 0.05
[train]
num_steps = 120
global_batch_size = 8
validate_every = 50
[checkpoint]
every = 10
stop_timeout_s = 20
[launch]
nodes = 2
doctor = false
[slurm]
signal_ahead_s = 60
"""
END_S = 300.0
SHOW = "import os; from aifx.parallel.processes import detect; print(detect(os.environ))"


class Launches:
    """A project, and what is launched from it."""

    def __init__(self, slurm: Cluster, root: Path) -> None:
        self.slurm, self.root = slurm, root
        (root / "aifx.toml").write_text(TOML)
        shutil.copy(TINY, root)
        self.environ = {**os.environ, "SLURM_CONF": str(slurm.folder / "slurm.conf")}
        self.environ.pop("XLA_FLAGS")  # compile as users do

    def launch(self, *args: str) -> str:
        done = inprocess.run(["launch", *args], self.root, self.environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, run: str, *settings: str) -> dict[str, Any]:
        """Submit a run. Returns the record of its launch."""
        self.launch("slurm", "--no-follow", "train", "--run", run, *settings)
        return self.newest()["record"]  # type: ignore[no-any-return]

    def newest(self) -> dict[str, Any]:
        return json.loads(self.launch("ls", "--json"))["launches"][-1]  # type: ignore[no-any-return]

    def events(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        return read_jsonl(self.root / "runs" / ".launched" / record["id"] / "events.jsonl")

    def output(self, record: dict[str, Any]) -> str:
        return self.launch("logs", record["id"])

    def wait(self, record: dict[str, Any], what: str, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + END_S
        while not true():
            assert time.monotonic() < deadline, f"{what}: not in {END_S:g} s{self.output(record)}{self.slurm.logs()}"
            time.sleep(0.2)

    def wait_for_event(self, record: dict[str, Any], event: str) -> None:
        self.wait(record, event, lambda: event in [found["event"] for found in self.events(record)])

    def wait_for_checkpoint(self, record: dict[str, Any]) -> None:
        log = self.root / "runs" / record["run"] / "events.jsonl"
        self.wait(record, "a checkpoint", lambda: any(found["event"] == "checkpoint" for found in read_jsonl(log)))

    def result(self, record: dict[str, Any]) -> tuple[str, list[float]]:
        """The digest of the state in which a run has completed, and the loss of each step."""
        self.wait_for_event(record, "end")
        assert self.events(record)[-1]["code"] == 0, self.output(record)
        run = self.root / "runs" / record["run"]
        stop = read_jsonl(run / "events.jsonl")[-1]
        assert (stop["event"], stop["status"], stop["step"]) == ("stop", "completed", 120)
        records = read_jsonl(run / "metrics.jsonl")
        assert [found["step"] for found in records] == list(range(1, 121))
        return stop["state_digest"], [found["loss"] for found in records]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def launches(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches(slurm, tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def undisturbed(launches: Launches) -> tuple[str, list[float]]:
    """The result of a run that nothing happened to."""
    record = launches.start("undisturbed")
    result = launches.result(record)
    assert [event["event"] for event in launches.events(record)] == ["begin", "start", "end"]
    log = launches.output(record)
    assert "[0] 2 x cpu" in log
    assert "step 120 of 120" in log
    # Slurm is still ending the job when its script has recorded the end.
    launches.wait(record, "completion", lambda: launches.newest()["status"]["state"] == "completed")
    return result


def process_of(record: dict[str, Any], number: int) -> int:
    """The process of this number of a job's newest start."""
    wanted = {f"SLURM_JOB_ID={record['job']}".encode(), f"AIFX_PROCESS_ID={number}".encode()}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                return int(folder.name)
    raise AssertionError(f"process {number} of job {record['job']} does not run")


def test_a_job_whose_record_was_not_written_is_found_by_its_request(launches: Launches) -> None:
    def ask(run: str) -> dict[str, Any]:
        launches.launch("slurm", "--no-follow", "-o", "begin=now+1hour", "--request", "r1", "train", "--run", run)
        return launches.newest()["record"]  # type: ignore[no-any-return]

    def numbers() -> list[str]:
        return launches.slurm.ask(
            "squeue", "-h", "--states=all", "--format=%A %k", f"--name=aifx-{first['id']}"
        ).split()

    first = ask("asked-1")
    folder = launches.root / "runs" / ".launched" / first["id"]
    (folder / "record.json").unlink()
    assert ask("asked-2") == first
    assert numbers() == [first["job"], "aifx-request-r1"]
    launches.slurm.ask("scancel", first["job"])
    (folder / "record.json").unlink()
    assert ask("asked-3") == first
    assert numbers() == [first["job"], "aifx-request-r1"]
    shutil.rmtree(folder)


@pytest.mark.representative("a Slurm job")
def test_a_killed_process_ends_the_others_and_the_job_starts_them_again(
    launches: Launches, undisturbed: tuple[str, list[float]]
) -> None:
    number = random.Random(seed_of_commit()).randrange(2)
    with held_at(launches.root, 60):
        record = launches.start("killed")
        launches.wait_for_checkpoint(record)
        os.kill(process_of(record, number), signal.SIGKILL)
    assert launches.result(record) == undisturbed
    assert [event["event"] for event in launches.events(record)] == ["begin", "start", "start", "end"]
    assert [event["step"] for event in launches.events(record) if event["event"] == "start"][1] >= 10
    log = launches.output(record)
    assert f"process {number} failed first: signal 9" in log
    assert "restart 1 of 3" in log


def test_ahead_of_the_limit_the_run_saves_and_the_job_goes_back_to_the_queue(
    launches: Launches, undisturbed: tuple[str, list[float]]
) -> None:
    slurm = launches.slurm
    with held_at(launches.root, 60):
        record = launches.start("limited")
        launches.wait_for_checkpoint(record)
        # What Slurm does for --signal=B:TERM@60, half a minute sooner than it would for a limit.
        slurm.ask("scancel", "--batch", "--signal=TERM", record["job"])
        launches.wait_for_event(record, "signal")
    launches.wait_for_event(record, "requeue")
    status = launches.newest()["status"]
    assert status["state"] in ("ending", "pending"), status
    saved = max(int(path.name) for path in (launches.root / "runs" / "limited" / "checkpoints").glob("[0-9]*[0-9]"))

    def is_queued() -> bool:
        return slurm.ask("squeue", "-h", "-j", record["job"], "-o", "%t").strip() == "PD"

    launches.wait(record, "the job in the queue", is_queued)
    # Slurm would let it wait for two minutes. Nodes refuse a job that begins within the second in which it ended.
    slurm.ask("scontrol", "update", f"JobId={record['job']}", "StartTime=now+3")
    assert launches.result(record) == undisturbed
    names = [event["event"] for event in launches.events(record)]
    assert names == ["begin", "start", "signal", "requeue", "begin", "start", "end"]
    assert [event["step"] for event in launches.events(record) if event["event"] == "start"] == [0, saved]


def run_job(slurm: Cluster, script: str) -> str:
    """The output of a job of two tasks, one on each node, which nobody supervises."""
    job = slurm.submit(script, "-N2", "-n2", "--export=ALL")
    slurm.wait("the end of the job", lambda: job not in slurm.ask("squeue", "-h", "-o", "%i"))
    return slurm.output(job)


def test_a_script_of_ones_own(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text(TOML)
    shutil.copy(TINY, tmp_path)
    aifx = f"{sys.executable} -m aifx.commands.main train --set train.num_steps=6 --json"
    out = tmp_path / "answer-%t.json"
    run_job(slurm, f"cd {tmp_path} && srun --kill-on-bad-exit=1 -o {out} -e {tmp_path}/log-%t {aifx}")
    document = json.loads((tmp_path / "answer-0.json").read_text())
    assert (tmp_path / "answer-1.json").read_text() == ""
    assert (document["status"], document["step"]) == ("completed", 6)
    assert "2 x cpu" in (tmp_path / "runs" / "main" / "train.log").read_text()


def test_which_processes_are_tasks(slurm: Cluster, tmp_path: Path) -> None:
    show = f"{sys.executable} -c '{SHOW}'"
    # Files of their own: srun writes lines of its own ("Step created", on a slow controller) to the job's output.
    script = f"cd {tmp_path}; {show} > batch; srun -o task-%t {show}; srun -N1 -n1 -o alone {show}"
    run_job(slurm, script)
    assert (tmp_path / "batch").read_text() == (tmp_path / "alone").read_text() == "None\n"
    for number in range(2):
        line = (tmp_path / f"task-{number}").read_text()
        assert line.startswith("Membership(source='Slurm', coordinator='n1:")
        assert f"num_processes=2, process_id={number}," in line
