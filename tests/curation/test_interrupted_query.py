"""Ctrl-C and SIGTERM stop a query that DuckDB would compute for hours."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from toy_steps import Rows

from aifx.curation.execution import execute
from aifx.curation.step import Limits
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.sql import stopped_by_signals

ENDLESS = "SELECT levenshtein(repeat('a', 3000000), repeat('b', 3000000)) FROM data"
"""One call of a function, which looks for no interrupt: hours."""

TIMEOUT_S = 120


@pytest.mark.parametrize(
    ("number", "code", "output"),
    [
        pytest.param(signal.SIGINT, 130, "", marks=pytest.mark.representative("a query that is stopped")),
        pytest.param(signal.SIGTERM, 75, "out.csv", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, "", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_query(tmp_path: Path, number: int, code: int, output: str) -> None:
    """Its process ends with the command, also one that is killed, and leaves no file."""
    execute(Rows((), (("a",),)), "pets", open_catalog(str(tmp_path / "datasets")), Limits(1 << 30, 1))
    (spill := tmp_path / "tmp").mkdir()
    command = [sys.executable, "-P", "-m", "aifx.commands.main", "data", "query", "pets", ENDLESS, "--root", "datasets"]
    command += ["--output", output] if output else []
    environ = {**os.environ, "TMPDIR": str(spill)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    querying = _querying(process, spill)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, err
    querying.wait(TIMEOUT_S)
    if number != signal.SIGKILL:
        assert not querying.is_running()
        assert not list(spill.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datasets", "tmp"]


def _querying(process: subprocess.Popen[bytes], spill: Path) -> psutil.Process:
    """The process of the query, once DuckDB computes."""
    deadline, began = time.monotonic() + TIMEOUT_S, math.inf
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        if list(spill.glob("**/aifx-sql-*")):
            for child in psutil.Process(process.pid).children():
                if (computed_s := child.cpu_times().user) > began + 0.3:  # what precedes the query takes milliseconds
                    return child
                if "resource_tracker" not in " ".join(child.cmdline()):
                    began = min(began, computed_s)
        time.sleep(0.02)


def test_a_signal_before_the_query_starts_stops_it() -> None:
    """DuckDB forgets an interrupt when a query starts, so that one is not enough."""

    class Connection:
        def __init__(self) -> None:
            self.interrupts = 0
            self.is_interrupted = threading.Event()

        def interrupt(self) -> None:
            self.interrupts += 1
            if self.interrupts == 2:
                self.is_interrupted.set()

    connection = Connection()

    def query() -> None:
        with stopped_by_signals(connection):
            signal.raise_signal(signal.SIGINT)
            assert connection.is_interrupted.wait(TIMEOUT_S)
            raise RuntimeError("interrupted")

    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            query()
    finally:
        signal.signal(signal.SIGINT, before)
