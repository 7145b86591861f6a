"""Commands of data sets that are killed before and after each change of a file, `aifx data gc`, and asking again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from effort import IS_LONG, seed_of_commit

HERE = Path(__file__).parent
EVERY = {
    "make_recipe": 8,
    "dedupe": 3,
    "split_again": 3,
    "purge_shared": 4,
    "collect_unused": 12,
    "make_once": 6,
    "add_once": 3,
    "refuse_once": 3,
}
"""Number of its changes of which one is tried, unless LONG=1."""

WRITERS = (
    "collect_files", "dedupe", "split_again", "make_recipe", "read_database", "index", "tokenize", "purge",
    "clean_more", "purge_shared", "add_once", "refuse_once", "make_once",
)  # fmt: skip


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "writer",
    [
        pytest.param("clean", marks=pytest.mark.representative("what a killed step left")),
        pytest.param("add_nothing_once", marks=pytest.mark.representative("a killed request to a data set")),
        pytest.param("collect_unused", marks=pytest.mark.representative("what a killed step left")),
        *(pytest.param(writer, marks=pytest.mark.slow) for writer in WRITERS),
    ],
)
def test_a_kill_at_each_change(tmp_path: Path, writer: str, record_property: Callable[[str, object], None]) -> None:
    every = 1 if IS_LONG else EVERY.get(writer, 1)
    kills = kill_each(tmp_path, ["killed_writer.py", writer], every)
    record_property("kills", kills)
    assert kills > (5 if writer == "add_nothing_once" else 15)


@pytest.mark.representative("what a killed step left")
def test_a_lease_writer_is_killed(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    kills = kill_each(tmp_path, ["killed_lease.py"], 1 if IS_LONG else 3)
    record_property("kills", kills)
    assert kills > 7


def kill_each(folder: Path, program: Sequence[str], every: int) -> int:
    """Run a program of this folder that kills itself at each change. Returns how often it did."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    environ = {**os.environ, "PYTHONPATH": paths, "AIFX_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    name, *more = program
    command = [sys.executable, HERE / name, *more, folder, str(seed_of_commit() % every), str(every)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout.split()[-1])
