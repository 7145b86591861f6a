from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from aifx.checkpoint import faults
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.config.sections import CheckpointSection
from aifx.core.errors import EnvironmentFault, ExitCode
from aifx.core.json_files import JsonLines, read_jsonl
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
    checkpoints = Checkpoints(small_disk / "checkpoints", CheckpointSection(keep_last=3, disk_timeout_s=0))

    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), host={})
    with pytest.raises(EnvironmentFault) as caught:
        checkpoints.wait()
    assert caught.value.exit_code == ExitCode.UNABLE
    assert "step 3" in caught.value.what
    assert "3.1 MB needed" in caught.value.why
    assert "free" in caught.value.why
    assert "saved before" in caught.value.why
    assert caught.value.hint
    assert checkpoints.steps() == [1, 2]
    assert [checkpoints.verify(step).damaged for step in (1, 2)] == [(), ()]
    assert not list(checkpoints.directory.glob("*.unfinished"))
    assert "Traceback" not in capfd.readouterr().err

    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    checkpoints.save(3, state_of(3), host={})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]


def test_a_disk_that_is_full_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path, needed: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    monkeypatch.setattr("aifx.checkpoint.checkpoints.check_room", refuse)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection(keep_last=3, keep_best=1, disk_timeout_s=0))
    checkpoints.save(1, state_of(1), host={})
    with pytest.raises(EnvironmentFault) as caught:
        checkpoints.wait()
    assert "3.1 MB needed" in caught.value.why
    assert "5 checkpoints" in caught.value.why
    assert "15.0 MB" in caught.value.why


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_lines_on_a_full_disk_are_held_and_written_in_order(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonLines, "RETRY_S", 0.0)
    ledger = Ledger(small_disk / "events.jsonl")
    metrics = MetricsWriter(small_disk / "metrics.jsonl", 0)
    ledger.write("start")
    metrics.write({"step": 1})
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        fill(filler)
    for step in range(2, 200):
        ledger.write("checkpoint", text="x" * 100)
        metrics.write({"step": step, "text": "x" * 100})
    with pytest.raises(EnvironmentFault, match=r"metrics\.jsonl"):
        metrics.sync()
    for path in (ledger.path, metrics.path):
        assert path.read_bytes().endswith(b"\n")
        assert len(read_jsonl(path)) < 199
    filler.unlink()
    metrics.sync()
    assert [record["step"] for record in read_jsonl(metrics.path)] == list(range(1, 200))
    ledger.write("stop")
    assert [event["event"] for event in read_jsonl(ledger.path)] == ["start", *["checkpoint"] * 198, "stop"]


def test_lines_that_are_too_many_to_hold_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonLines, "HELD_BYTES", 300)

    def refuse(*_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    lines = JsonLines(tmp_path / "lines.jsonl", is_patient=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        lines.append({"text": "x" * 100})
        lines.append({"text": "y" * 100})
        with pytest.raises(EnvironmentFault, match="lines"):
            lines.append({"text": "z" * 100})
        with pytest.raises(EnvironmentFault, match="lines"):
            lines.sync()
    lines.close()
    assert [line["text"][0] for line in read_jsonl(lines.path)] == ["x", "y"]


class Disk:
    """Refuses checkpoints while `number` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int | None = None) -> None:
        self.number, self.asked = number, 0
        monkeypatch.setattr("aifx.checkpoint.checkpoints.check_room", self)
        monkeypatch.setattr(faults, "LONGEST_PAUSE_S", 0.01)

    def __call__(self, directory: Path, needed: int) -> None:
        self.asked += 1
        if self.number is not None:
            raise OSError(self.number, os.strerror(self.number), str(directory))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_training_goes_on_while_the_disk_refuses(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, warned, refused = Disk(monkeypatch, number), [], []

    def note(step: int, fault: BaseException) -> None:
        refused.append(step)

    checkpoints = Checkpoints(
        tmp_path / "checkpoints", CheckpointSection(keep_last=3), warn=warned.append, on_refusal=note
    )
    for step in (1, 2, 3):
        asked = disk.asked
        checkpoints.save(step, state_of(step), host={})
        while disk.asked < asked + 4:  # it is tried again and again
            time.sleep(0.001)
    assert (checkpoints.steps(), refused) == ([], [1])
    lasting = [text for text in warned if "training goes on" in text]
    assert len(lasting) == 1
    assert os.strerror(number) in lasting[0] or "disk is full" in lasting[0]
    disk.number = None
    assert checkpoints.wait()
    assert checkpoints.steps() == [3]
    assert checkpoints.verify(3).damaged == ()
    assert "takes checkpoints again" in warned[-1]
    disk.number = number
    checkpoints.save(4, state_of(4), host={})
    while len(refused) < 2:
        time.sleep(0.001)
    disk.number = None
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]
    assert [path.name for path in sorted(checkpoints.directory.iterdir())] == ["3", "4"]


def test_the_last_save_waits_for_the_disk_within_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, errno.ENOSPC)
    monkeypatch.setattr(faults, "time", SimpleNamespace(monotonic=lambda: 60.0 * disk.asked))
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSection(disk_timeout_s=240))
    checkpoints.save(1, state_of(1), host={})
    with pytest.raises(EnvironmentFault) as caught:
        checkpoints.wait()
    assert (caught.value.exit_code, "df -h" in caught.value.hint, disk.asked > 3) == (ExitCode.UNABLE, True, True)


def test_records_are_on_the_disk_before_their_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint whose records are held back is not one yet."""
    Disk(monkeypatch)
    metrics = MetricsWriter(tmp_path / "metrics.jsonl", 0)
    real, full = os.write, True

    def write(handle: int, data: bytes) -> int:
        if full and os.readlink(f"/proc/self/fd/{handle}") == str(metrics.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)
    metrics.write({"step": 1})
    told: list[int] = []
    checkpoints = Checkpoints(
        tmp_path / "checkpoints",
        CheckpointSection(),
        before_commit=metrics.sync,
        on_refusal=lambda step, _: told.append(step),
    )
    checkpoints.save(1, state_of(1), host={})
    while not told:
        time.sleep(0.001)
    assert checkpoints.steps() == []
    full = False
    checkpoints.wait()
    assert checkpoints.steps() == [1]
    assert [record["step"] for record in read_jsonl(metrics.path)] == [1]
