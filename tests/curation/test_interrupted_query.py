"""Ctrl-C and SIGTERM stop a query that DuckDB would compute for hours."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_steps import Rows

from aifx.curation.execution import execute
from aifx.curation.step import Limits
from aifx.data.versions import open_catalog

ENDLESS = (
    "SELECT count(*) FROM data a, data b, data c, data d WHERE a.text < b.text AND b.text < c.text AND c.text < d.text"
)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_stops_a_query(tmp_path: Path, number: int, code: int) -> None:
    texts = tuple(f"row {index}" for index in range(3000))
    execute(Rows((), (texts,)), "pets", open_catalog(str(tmp_path / "datasets")), Limits(1 << 30, 1))
    command = [sys.executable, "-P", "-m", "aifx.commands.main", "data", "query", "pets", ENDLESS, "--root", "datasets"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    spill = Path(f"/proc/{process.pid}/task")
    deadline = time.monotonic() + 60
    while len(list(spill.iterdir())) < 3 and time.monotonic() < deadline:  # DuckDB's threads
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(60) == code, process.stderr.read() if process.stderr else ""
