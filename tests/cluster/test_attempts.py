"""A run that dies three times at the same place is not started a fourth time."""

from __future__ import annotations

from pathlib import Path

import pytest

from aifx.checkpoint.manifest import STATE, Manifest
from aifx.cluster.local import check_progress, newest_step
from aifx.core.artifact import seal, seal_files
from aifx.core.errors import AifxError, ExitCode
from aifx.core.project import RunDirectory


def save(run: RunDirectory, step: int) -> Path:
    """A file of a checkpoint with its manifest: as much of one as is read here."""
    folder = run.checkpoints / str(step)
    (folder / STATE).mkdir(parents=True)
    file = folder / STATE / "array"
    file.write_bytes(b"numbers")
    seal(folder, Manifest(step, 0.0, None, {}, {}, None, {}).artifact(seal_files(folder, [file])))
    return file


def test_three_starts_without_a_newer_checkpoint_are_enough(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert newest_step(run) == 0
    check_progress(run, [0, 0])
    with pytest.raises(AifxError, match=r"3 times .*beginning") as caught:
        check_progress(run, [0, 0, 0])
    assert caught.value.exit_code == ExitCode.UNABLE
    save(run, 20)
    assert newest_step(run) == 20
    check_progress(run, [0, 0, 0])
    check_progress(run, [0, 0, 0, 20, 20])
    with pytest.raises(AifxError, match=r"3 times .*step 20"):
        check_progress(run, [0, 20, 20, 20])


def test_a_damaged_checkpoint_is_no_progress(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    save(run, 10)
    file = save(run, 20)
    check_progress(run, [10, 10, 20])
    file.write_bytes(b"numbres")
    with pytest.raises(AifxError, match=r"3 times .*step 10"):
        check_progress(run, [10, 10, 20])
    save(run, 15)
    check_progress(run, [10, 10, 20])
