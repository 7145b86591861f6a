"""Ctrl-C and SIGTERM stop a query that DuckDB would compute for hours."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from toy_steps import Rows

from aifx.curation.engine import stopped_by_signals
from aifx.curation.execution import execute
from aifx.curation.step import Limits
from aifx.data.versions import open_catalog

ENDLESS = (
    "SELECT count(*) FROM data a, data b, data c, data d WHERE a.text < b.text AND b.text < c.text AND c.text < d.text"
)
PROGRAM = """
from contextlib import contextmanager
from aifx.commands.main import main
from aifx.curation import sql

real = sql.stopped_by_signals

@contextmanager
def announced(connection):
    with real(connection):
        print("querying", flush=True)
        yield

sql.stopped_by_signals = announced
main()
"""
TIMEOUT_S = 120


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)]
)
def test_a_signal_stops_a_query(tmp_path: Path, number: int, code: int) -> None:
    texts = tuple(f"row {index}" for index in range(3000))
    execute(Rows((), (texts,)), "pets", open_catalog(str(tmp_path / "datasets")), Limits(1 << 30, 1))
    command = [sys.executable, "-P", "-c", PROGRAM, "data", "query", "pets", ENDLESS, "--root", "datasets"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "querying\n"

    def computed_s() -> float:
        return psutil.Process(process.pid).cpu_times().user

    began, deadline = computed_s(), time.monotonic() + TIMEOUT_S
    while computed_s() - began < 1:  # what precedes the query takes milliseconds
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, err


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
