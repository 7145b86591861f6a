"""A file system that fills up: exit 2, a clear word, and what was saved still whole."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_command import TINY, Command, settings


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system of a chosen size cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_full_disk(project: Command, trained: Command, small_disk: Path) -> None:
    runs = project.cwd / "runs"
    runs.symlink_to(small_disk, target_is_directory=True)
    train = [
        "train",
        *settings(
            [
                *TINY,
                "train.num_steps=20",
                "checkpoint.every=1",
                "checkpoint.keep_last=100",
                "checkpoint.disk_timeout_s=1",
            ]
        ),
    ]
    full = project(*train, "--json")
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    error = full.json()["error"]
    assert "disk" in (error["what"] + error["why"]).lower() or "space" in (error["what"] + error["why"]).lower()
    assert error["hint"]

    kept = project("ckpt", "ls", "--run", "main", "--json").json()["checkpoints"]
    assert kept, "nothing was saved before the disk was full"
    verified = project("ckpt", "verify", str(kept[-1]["step"]), "--run", "main", "--json")
    assert verified.returncode == 0, verified.stderr

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert project(*train, "--json").json()["status"] == "completed"
    again = project("ckpt", "verify", "--run", "main", "--json").json()
    assert again["state_digest"] == json.loads((trained.cwd / "report.json").read_text())["state_digest"]
