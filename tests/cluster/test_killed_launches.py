"""`aifx launch --request` that is killed anywhere: asked again, there is one job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import IS_LONG, seed_of_commit

HERE = Path(__file__).parent


def kill_each(folder: Path, kind: str, every: int) -> int:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    first = str(seed_of_commit() % every)
    command = [sys.executable, str(HERE / "killed_launch.py"), kind, str(folder), first, str(every)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


@pytest.mark.representative("a killed launch")
@pytest.mark.parametrize("kind", ["slurm", "k8s"])
def test_a_launch_that_is_killed_makes_one_job(
    tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    kills = kill_each(tmp_path, kind, 1 if IS_LONG else 6)
    record_property("kills of a launch", kills)
    assert kills >= 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slurm", "k8s"])
def test_a_launch_that_is_killed_at_each_place_makes_one_job(
    tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    kills = kill_each(tmp_path, kind, 1)
    record_property("kills of a launch", kills)
    assert kills >= 20
