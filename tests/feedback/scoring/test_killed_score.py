"""`aifx score` that is killed with its database: each row is scored once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import IS_LONG
from postgresql_server import find_programs

pytestmark = pytest.mark.skipif(find_programs() is None, reason="no PostgreSQL server")


def run(project: Path, *args: str) -> int:
    here = Path(__file__).parent
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [sys.executable, str(here / "killed_score.py"), *args]
    done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("last", [pytest.param("2", marks=pytest.mark.representative("a killed scoring")), "all"])
def test_killed_at_statements_and_commits(
    project: Path, last: str, record_property: Callable[[str, object], None]
) -> None:
    kills = run(project, "places", last)
    record_property("kills", kills)
    assert kills >= 6


@pytest.mark.slow
def test_killed_at_random_with_its_server(project: Path, record_property: Callable[[str, object], None]) -> None:
    kills = run(project, "random", "200" if IS_LONG else "8")
    record_property("kills", kills)
    assert kills >= 8
