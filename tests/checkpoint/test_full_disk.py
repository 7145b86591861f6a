from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from aifx.checkpoint import faults
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.config.sections import CheckpointSection
from aifx.core.errors import EnvironmentFault, ExitCode
from aifx.core.json_files import read_jsonl
from aifx.runs.records import Ledger, MetricsWriter


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as e:
        pytest.skip(f"mount cannot be run here: {e}")
    if mounted.returncode:
        pytest.skip(f"a file system of a chosen size cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def state_of(step: int) -> dict[str, Any]:
    return {"params": {str(i): jnp.full((150_000,), step, jnp.float32) for i in range(5)}, "step": jnp.int32(step)}


@pytest.mark.parametrize("asked_before", [True, False])
def test_full_disk(
    small_disk: Path, asked_before: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found before writing, and where another program takes the room while we write."""
    if not asked_before:
        monkeypatch.setattr(faults, "check_room", lambda *_: None)
        monkeypatch.setattr("aifx.checkpoint.checkpoints.check_room", lambda *_: None)
    checkpoints = Checkpoints(small_disk / "checkpoints", CheckpointSection(keep_last=3))

    def save_three() -> None:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), host={})
        checkpoints.wait()

    with pytest.raises(EnvironmentFault) as caught:
        save_three()
    assert caught.value.exit_code == ExitCode.UNABLE
    assert "step 3" in caught.value.what
    assert "3.0 MB needed" in caught.value.why
    assert "free" in caught.value.why
    assert "what was saved before is whole" in caught.value.why
    assert caught.value.hint
    assert checkpoints.steps() == [1, 2]
    assert [checkpoints.verify(step).damaged for step in (1, 2)] == [(), ()]
    assert not list(checkpoints.directory.glob("*tmp*"))
    assert "Traceback" not in capfd.readouterr().err

    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    checkpoints.save(3, state_of(3), host={})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]


def test_a_disk_that_is_full_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path, needed: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    monkeypatch.setattr("aifx.checkpoint.checkpoints.check_room", refuse)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection(keep_last=3, keep_best=1))
    checkpoints.save(1, state_of(1), host={})
    with pytest.raises(EnvironmentFault) as caught:
        checkpoints.wait()
    assert "3.0 MB needed" in caught.value.why
    assert "nothing was saved; 5 checkpoints of this size need 15.0 MB" in caught.value.why


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_lines_on_a_full_disk_are_whole_or_absent(small_disk: Path) -> None:
    ledger = Ledger(small_disk / "events.jsonl")
    metrics = MetricsWriter(small_disk / "metrics.jsonl", 0)
    ledger.write("start")
    metrics.write({"step": 1})
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        fill(filler)

    def write_events() -> None:
        for _ in range(1000):
            ledger.write("checkpoint", text="x" * 100)

    def write_metrics() -> None:
        for step in range(2, 1000):
            metrics.write({"step": step, "text": "x" * 100})

    for _ in range(2):
        with pytest.raises(EnvironmentFault, match=r"events\.jsonl"):
            write_events()
        with pytest.raises(EnvironmentFault, match=r"metrics\.jsonl"):
            write_metrics()
    for path in (ledger.path, metrics.path):
        assert path.read_bytes().endswith(b"\n")
    filler.unlink()
    before = len(read_jsonl(ledger.path))
    ledger.write("stop")
    events = read_jsonl(ledger.path)
    assert len(events) == before + 1
    assert events[-1]["event"] == "stop"
