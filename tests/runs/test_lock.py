from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aifx.core.errors import ExitCode, RunBusy
from aifx.core.project import RunDirectory
from aifx.runs import lock
from aifx.runs.lock import hold_run, holder, is_held

HOLD = """
import sys, time
from pathlib import Path
from aifx.core.project import RunDirectory
from aifx.runs.lock import hold_run
with hold_run(RunDirectory(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[RunDirectory, subprocess.Popen[str]]]:
    """A run that another process holds."""
    run = RunDirectory(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield run, process
        process.kill()


def test_a_second_process_is_told_who(held: tuple[RunDirectory, subprocess.Popen[str]]) -> None:
    run, process = held
    with pytest.raises(RunBusy) as caught, hold_run(run):
        pass
    assert caught.value.exit_code == ExitCode.UNABLE
    assert f"process {process.pid} on {socket.gethostname()}" in caught.value.why
    assert is_held(run)
    who = holder(run)
    assert who is not None
    assert who.pid == process.pid
    assert 0 <= time.time() - who.since < 3600


@pytest.mark.parametrize("before", [b"", b'{"pid": 4194305, "host": "%s", "command": "aifx train", "since": 1}'])
def test_a_process_that_just_took_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    run = RunDirectory(tmp_path)
    run.lock.write_bytes(before.replace(b"%s", socket.gethostname().encode()))  # of a process that was killed
    waits = 0

    def written_late(_: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3 * lock.TRIES:
            since = time.time()
            name = {"pid": os.getpid(), "host": socket.gethostname(), "command": "aifx sweep", "since": since}
            run.lock.write_text(json.dumps(name))

    with open(run.lock, "rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr(lock.time, "sleep", written_late)
        with pytest.raises(RunBusy) as caught, hold_run(run):
            pass
    assert f"process {os.getpid()} on" in caught.value.why


def test_kill_9_frees_it(held: tuple[RunDirectory, subprocess.Popen[str]]) -> None:
    run, process = held
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_held(run)
    with hold_run(run):
        assert json.loads(run.lock.read_text())["pid"] == os.getpid()


def test_it_can_be_taken_again_and_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not is_held(run)
    for _ in range(3):
        with hold_run(run):
            assert is_held(run)
            with pytest.raises(RunBusy), hold_run(run):
                pass
        assert not is_held(run)


def test_whoever_looks_does_not_get_in_the_way(tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "other")
    other.path.mkdir()
    other.lock.touch()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_held(other)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            with hold_run(other):
                pass
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_damaged_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.lock.write_bytes(b"\xff{torn")
    assert holder(run) is None
    with hold_run(run):
        assert holder(run) is not None
