"""A line whose stations run on the two nodes of a real Slurm: submitted, polled, adopted, and never started twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, cluster, missing
from ticking import Ticking, station

from aifx.verbs.line_ticks import line_watch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

TOML = """\
[task]
kind = "tiny:TinyTask"
[train]
num_steps = 6
global_batch_size = 8
[eval]
gates = ["loss <= 99"]
[launch]
nodes = 2
doctor = false
"""
LINE = """\
[[station]]
name = "train"
run = "aifx train --run lm-{key}"
on = "slurm"
cooldown = "1s"
budget_per_day = 99

[[station]]
name = "judge"
run = "aifx eval --run {stations.train.run} --gate 'loss <= GATE'"
on = "slurm"

"""
WAIT_S = 600.0


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture
def ticking(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ticking:
    monkeypatch.setenv("SLURM_CONF", str(slurm.folder / "slurm.conf"))
    monkeypatch.delenv("XLA_FLAGS")  # compile as users do
    (tmp_path / "aifx.toml").write_text(TOML)
    shutil.copy(Path(__file__).parents[1] / "training" / "tiny.py", tmp_path)
    return Ticking(tmp_path)


def tick_until(ticking: Ticking, slurm: Cluster, true: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    deadline = time.monotonic() + WAIT_S
    while not true(states := ticking.tick()):
        assert time.monotonic() < deadline, f"{states} {ticking.lines}{slurm.logs()}"
        time.sleep(1)
    return states


def jobs(ticking: Ticking) -> list[str]:
    """The numbers of all jobs that were submitted from the project."""
    return [path.read_text().strip() for path in (ticking.root / "runs" / ".launched").glob("*/job")]


def test_a_model_is_trained_and_judged_by_jobs_and_used_here(ticking: Ticking, slurm: Cluster) -> None:
    ticking.write(LINE.replace("GATE", "99") + station("next", "sh -c 'echo $0 >>next.count' {stations.judge.run}"))
    assert ticking.tick() == {"train": "running", "judge": "pending", "next": "pending"}
    states = tick_until(ticking, slurm, lambda states: "running" not in states.values())
    assert states == {"train": "done", "judge": "done", "next": "done"}, ticking.records("ended")
    train, judge = (ticking.records("ended", name)[0].facts for name in ("train", "judge"))
    assert (train["outputs"]["status"], train["outputs"]["step"]) == ("completed", 6)
    assert train["identity"]["state_digest"]
    assert [one["passed"] for one in judge["outputs"]["gates"]] == [True, True]
    assert (ticking.root / "next.count").read_text().split() == [train["outputs"]["run"]]
    assert len(jobs(ticking)) == 2
    assert ticking.tick() == states
    ticking.write(LINE.replace("GATE", "-99") + station("next", after=["judge"]))
    states = tick_until(ticking, slurm, lambda states: states["judge"] not in ("running", "pending"))
    assert states == {"train": "done", "judge": "verdict", "next": "blocked"}
    assert len(jobs(ticking)) == 3


TICK = "import sys; from ticking import Ticking; from pathlib import Path; print(Ticking(Path(sys.argv[1])).tick())"


def test_a_line_killed_between_submission_and_record_has_one_job(ticking: Ticking, slurm: Cluster) -> None:
    """sbatch ends the line, the submission and its shell as soon as Slurm has the job."""
    ticking.write(LINE.replace("GATE", "99").partition('[[station]]\nname = "judge"')[0])
    (ticking.root / "bin").mkdir()
    sbatch = f"""#!/bin/sh
{shutil.which("sbatch")} "$@" || exit
if [ ! -e killed ]; then touch killed; kill -9 "$(cat line.pid)" -"$(cut -d' ' -f5 /proc/$PPID/stat)"; fi
"""
    (ticking.root / "bin" / "sbatch").write_text(sbatch)
    (ticking.root / "bin" / "sbatch").chmod(0o755)
    environ = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parent), "PATH": f"{ticking.root / 'bin'}:{os.environ['PATH']}"
    }  # fmt: skip
    line = subprocess.Popen([sys.executable, "-c", TICK, str(ticking.root)], env=environ, start_new_session=True)
    (ticking.root / "line.pid").write_text(str(line.pid))
    assert line.wait() == -signal.SIGKILL
    (launch,) = (ticking.root / "runs" / ".launched").iterdir()
    assert not (launch / "record.json").exists()
    states = tick_until(ticking, slurm, lambda states: states["train"] != "running")
    assert states == {"train": "done"}, ticking.records("ended")
    (folder,) = (ticking.root / "runs" / ".launched").iterdir()
    assert jobs(ticking) == [json.loads((folder / "record.json").read_text())["job"]]
    numbers = slurm.ask("squeue", "-h", "--states=all", "--format=%A", f"--name=aifx-{folder.name}").split()
    assert numbers == jobs(ticking)
    assert len(ticking.records("started")) == 1


def test_a_job_beyond_its_time_limit_is_stopped_by_slurm(ticking: Ticking, slurm: Cluster) -> None:
    (ticking.root / "aifx.toml").write_text(
        TOML.replace("num_steps = 6", "num_steps = 100_000").replace("[eval]", "[checkpoint]\nevery = 10\n[eval]")
    )
    line = LINE.replace("GATE", "99").partition('[[station]]\nname = "judge"')[0]
    ticking.write(line.replace('"1s"', '"1s"\ntime_limit = "20s"'))
    states = tick_until(ticking, slurm, lambda states: states["train"] != "running")
    (ended,) = ticking.records("ended")
    assert states == {"train": "failed"}
    assert "time_limit of 20 s" in ended.facts["error"]["why"]
    slurm.wait("the end of the job", lambda: not slurm.ask("squeue", "-h"))


def test_a_watch_takes_the_end_of_a_job_long_before_its_next_period(ticking: Ticking, slurm: Cluster) -> None:
    train = LINE.replace("GATE", "99").partition('[[station]]\nname = "judge"')[0]
    next_one = station("next", "sh -c 'echo $0 >>next.count' {stations.train.run}")
    ticking.write(f'[line]\nevery = "7d"\n{train}{next_one}')
    stop, lines = list[int](), list[str]()
    give_up = threading.Timer(WAIT_S, stop.append, [signal.SIGTERM])
    give_up.start()

    def heard(text: str) -> None:
        lines.append(text)
        if text.startswith(("next: done", "train: failed")):
            stop.append(signal.SIGTERM)

    line_watch(allow_shell=True, stop=stop, on_line=heard, project=ticking.root)
    give_up.cancel()
    assert lines[-1] == "next: done", f"{lines}{slurm.logs()}"
    assert len(jobs(ticking)) == ticking.count("next") == 1
