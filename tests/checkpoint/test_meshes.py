"""A state saved on any mesh is restored on any other, and each process touches only what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from effort import seed_of_commit

EIGHT = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}


def run(directory: Path, seed: int, rounds: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("mesh_process.py")), str(directory), str(seed), str(rounds)]
    done = subprocess.run(command, env=EIGHT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_random_meshes(tmp_path: Path) -> None:
    run(tmp_path, seed_of_commit(), 12)


@pytest.mark.slow
def test_many_random_meshes(tmp_path: Path) -> None:
    run(tmp_path, seed_of_commit() + 1, 200)
