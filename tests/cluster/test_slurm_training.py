"""A training of two tasks under a real Slurm, on nodes whose names no name service knows."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, cluster, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

TINY = Path(__file__).parents[1] / "training" / "tiny.py"
TOML = """\
[task]
kind = "tiny:TinyTask"
[train]
num_steps = 6
global_batch_size = 8
"""
SHOW = "import os; from aifx.parallel.processes import detect; print(detect(os.environ))"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


def run_job(slurm: Cluster, script: str) -> str:
    """The output of a job of two tasks, one on each node."""
    job = slurm.submit(script, "-N2", "-n2", "--export=ALL")
    slurm.wait("the end of the job", lambda: job not in slurm.ask("squeue", "-h", "-o", "%i"))
    return slurm.output(job)


def test_two_tasks_train_one_run(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text(TOML)
    shutil.copy(TINY, tmp_path)
    aifx = f"AIFX_CACHE_DIR={tmp_path}/cache JAX_PLATFORMS=cpu {sys.executable} -m aifx.commands.main"
    out = tmp_path / "answer-%t.json"
    run_job(slurm, f"cd {tmp_path} && srun --kill-on-bad-exit=1 -o {out} -e {tmp_path}/log-%t env {aifx} train --json")
    document = json.loads((tmp_path / "answer-0.json").read_text())
    assert (tmp_path / "answer-1.json").read_text() == ""
    assert document["status"] == "completed"
    assert document["step"] == 6
    log = (tmp_path / "runs" / "main" / "train.log").read_text()
    assert "2 x cpu" in log


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
