"""Commands in a process of a job: which of them run as several processes, and what the others say."""

from __future__ import annotations

import os
from pathlib import Path

import inprocess
import pytest

JOB = {"AIFX_COORDINATOR": "127.0.0.1:20000", "AIFX_NUM_PROCESSES": "4", "AIFX_PROCESS_ID": "1"}


@pytest.mark.parametrize("args", [["predict", "rows.jsonl"], ["score", "main", "rows.jsonl", "scores"], ["generate"]])
def test_a_command_that_runs_as_one_process(tmp_path: Path, args: list[str]) -> None:
    done = inprocess.run(args, tmp_path, {**os.environ, **JOB})
    assert done.returncode == 2
    assert f"aifx {args[0]} runs as one process" in done.stderr
    assert "process 1 of 4" in done.stderr
    assert f"srun --ntasks=1 aifx {args[0]}" in done.stderr


def test_the_launcher_names_the_command_that_runs_alone(tmp_path: Path) -> None:
    done = inprocess.run(["launch", "local", "-n", "2", "predict", "new rows.csv"], tmp_path, os.environ)
    assert done.returncode == 2
    assert "aifx predict 'new rows.csv'" in done.stderr
