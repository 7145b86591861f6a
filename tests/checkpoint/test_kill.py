"""SIGKILL at any moment inside a save leaves the old checkpoints or the new."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import parts, seed_of_commit

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.config.sections import CheckpointSection

PROCESS = Path(__file__).with_name("saving_process.py")


def kill_one(directory: Path, word: str, delay_s: float) -> tuple[int, int]:
    """Starts the saving process, kills it `delay_s` after its first `word`. Returns what it found and committed."""
    with subprocess.Popen([sys.executable, str(PROCESS), str(directory)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith(word):
            line = process.stdout.readline()
            assert line, "it ended by itself"
            lines.append(line)
        time.sleep(delay_s)
        process.kill()
        lines += process.stdout.readlines()
    assert not [line for line in lines if line.startswith("warning")]
    found = next(int(line.split()[1]) for line in lines if line.startswith("found"))
    committed = [int(line.split()[1]) for line in lines if line.startswith("committed") and line.endswith("\n")]
    return found, max(committed, default=found)


def kill_often(directory: Path, times: int, seed: int) -> None:
    dice = random.Random(seed)
    committed = 0
    for i in range(times):
        # From the first save, which imports TensorStore, and from any later one.
        found, newly = kill_one(directory, "saving" if i % 3 == 0 else "committed", dice.uniform(0, 0.5))
        # More may be there than was said: a commit and its word are two things.
        assert found >= committed
        committed = max(committed, newly)
    checkpoints = Checkpoints(directory, CheckpointSection())
    assert (checkpoints.latest() or 0) >= committed > 0
    for step in checkpoints.steps():
        assert not checkpoints.verify(step).damaged


@pytest.mark.representative("a kill while a checkpoint is saved")
def test_a_few_kills(tmp_path: Path) -> None:
    kill_often(tmp_path, 3, seed_of_commit())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", parts(10))
def test_twenty_kills(tmp_path: Path, part: int, record_property: Callable[[str, object], None]) -> None:
    kill_often(tmp_path, 20, seed_of_commit() + part)
    record_property("kills of a process that saves", 20)
