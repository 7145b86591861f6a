"""Several processes save one checkpoint, and any number of them restores it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peer_process
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.digest import state_digest
from aifx.checkpoint.manifest import Damaged, list_checkpoints
from aifx.config.sections import CheckpointSection
from aifx.core.errors import ExitCode
from aifx.parallel.connections import free_port

PROGRAM = Path(peer_process.__file__)


def run(directory: Path, count: int, *steps: str) -> list[tuple[int, Any]]:
    """The exit code and the report of each of `count` processes with two devices each."""
    environ = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    with tempfile.TemporaryDirectory() as signs:
        processes = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(directory), address, str(count), str(index), *steps],
                env={**environ, "SIGNS": signs},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]
        try:
            outputs = [process.communicate(timeout=500) for process in processes]
        finally:
            for process in processes:
                process.kill()
    reports = [json.loads(out) if out else err[-3000:] for out, err in outputs]
    return [(process.returncode, report) for process, report in zip(processes, reports, strict=True)]


def succeed(directory: Path, count: int, *steps: str) -> list[dict[str, Any]]:
    done = run(directory, count, *steps)
    assert all(code == 0 for code, _ in done), done
    return [report for _, report in done]


def named(step: int) -> dict[str, Any]:
    return {"params": peer_process.values_of(step), "step": np.int32(step)}


def wanted() -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), named(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 to 3, saved by two processes. One of them had to write its part of step 3 twice, and then had no room."""
    directory = tmp_path_factory.mktemp("peers") / "checkpoints"
    done = run(directory, 2, "save=1", "restore", "save=2", "busy_disk=3", "full_disk=4")
    assert all(isinstance(report, dict) for _, report in done), done  # otherwise it is stderr
    first, second = (report for _, report in done)
    assert first["commits"] == second["commits"] == [1, 2, 3], done
    assert first["restore"] == second["restore"] == 1
    assert "process 1: " in first["logged"][0]
    assert "Input/output error" in first["logged"][0]
    assert second["logged"] == []
    assert "checkpoint of step 4" in second["error"]["what"]
    assert "process 1" in first["error"]["what"] + first["error"]["why"]
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


@pytest.mark.slow
def test_one_process_restores_what_two_saved(saved: Path) -> None:
    checkpoints = Checkpoints(saved, CheckpointSection())
    assert checkpoints.steps() == [1, 2, 3]
    assert not list(saved.glob("*.unfinished"))
    for step in (1, 2, 3):
        tree, host = checkpoints.restore(step, wanted())
        peer_process.check(tree, step)
        assert host == {"step": step}
        verification = checkpoints.verify(step)
        assert (verification.damaged, verification.files) == ((), ())
        assert verification.state_digest == state_digest(named(step)) == state_digest(tree)
    assert [i.damaged for i in list_checkpoints(saved)] == [None] * 3
    assert {p.name for p in (saved / "3" / "state").glob("process_*")} == {"process_0", "process_1"}


@pytest.mark.slow
def test_no_byte_of_any_process_changes_unnoticed(directory: Path) -> None:
    checkpoints = Checkpoints(directory, CheckpointSection())
    dice = np.random.default_rng(0)
    files = sorted(p for p in (directory / "3").rglob("*") if p.is_file())
    assert {"process_0", "process_1", "manifest.json"} <= {part for p in files for part in p.parts}
    found: set[str] = set()
    for path in files:
        original = path.read_bytes()
        for at in dice.integers(0, len(original), 10):
            data = bytearray(original)
            data[at] ^= int(dice.integers(1, 256))
            path.write_bytes(data)
            files_named, arrays = damage(checkpoints)
            assert path.name in files_named, (path, at)
            found |= arrays
        path.write_bytes(original)
    assert found >= {"params/w", "params/both"}


def damage(checkpoints: Checkpoints) -> tuple[str, set[str]]:
    """The report on the files of step 3, and the damaged arrays."""
    try:
        verification = checkpoints.verify(3)
    except Damaged as e:
        return e.why, set()
    return "; ".join(verification.files), set(verification.damaged)


@pytest.mark.representative("checkpoints of several processes")
def test_three_processes_set_a_damaged_checkpoint_aside_and_go_on(directory: Path) -> None:
    """The flipped byte is in the part of one of the two processes that saved it."""
    last = peer_process.values_of(3)["w"][-1, -1].tobytes()  # not any byte: a part also has nodes that nothing reads
    for part in (directory / "3/state/process_1/d").iterdir():
        part.write_bytes(part.read_bytes().replace(last, bytes([last[0] ^ 1]) + last[1:]))
    reports = succeed(directory, 3, "restore", "save=4")
    assert [r["restore"] for r in reports] == [2, 2, 2]
    assert (directory / "3.damaged").is_dir()
    assert "step 3 is damaged" in reports[0]["logged"][0]
    checkpoints = Checkpoints(directory, CheckpointSection())
    assert checkpoints.steps() == [1, 2, 4]
    assert checkpoints.verify(4).state_digest == state_digest(named(4))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed_writing", pytest.param("killed_committing", marks=pytest.mark.slow)])
def test_a_process_that_dies_while_saving_leaves_no_checkpoint(directory: Path, how: str) -> None:
    done = run(directory, 2, f"{how}=4")
    codes = [code for code, _ in done]
    victim = 1 if how == "killed_writing" else 0
    assert codes[victim] == -9
    assert codes[1 - victim] != 0
    if victim == 1:
        error = done[0][1]["error"]
        assert error["exit_code"] == ExitCode.PREEMPTED
        assert "process 1" in error["what"]
    checkpoints = Checkpoints(directory, CheckpointSection())
    assert checkpoints.steps() == [1, 2, 3]
    found = checkpoints.latest_good(wanted())
    assert found is not None
    peer_process.check(found.state, 3)
    assert not list(directory.glob("*.unfinished"))
