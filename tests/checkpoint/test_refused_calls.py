"""A call of the operating system that fails: the checkpoint is written again, or the error names it and the reason."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from faulty_files import failing

from aifx.checkpoint import folders, storage
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.commands.console.failures import as_error
from aifx.config.best_by import LOSS, score_of
from aifx.config.sections import CheckpointSection
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode

SECTION = CheckpointSection(keep_last=1, keep_best=0, disk_timeout_s=0)


def state_of(step: int) -> dict[str, Any]:
    return {"params": {"w": jnp.full((3,), step, jnp.float32)}}


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(0))


def save(directory: Path, step: int, warn: list[str]) -> None:
    checkpoints = Checkpoints(directory, SECTION, warn=warn.append)
    checkpoints.save(step, state_of(step), host={})
    checkpoints.wait()


def assert_whole(directory: Path, step: int) -> None:
    """The next process finds `step`, and nothing of what failed."""
    checkpoints = Checkpoints(directory, SECTION)
    found = checkpoints.latest_good(ABSTRACT)
    assert found is not None
    assert found.step == step
    assert float(found.state["params"]["w"][0]) == step
    names = {path.name for path in directory.iterdir()}
    assert str(step) in names
    assert all(name.isdigit() for name in names), names


@pytest.fixture
def folder() -> Iterator[Path]:
    """A new folder in memory where there is one: a real fsync per call would take most of the time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of step 1."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, 1, [])
    return directory


@pytest.fixture(scope="module")
def calls_of_a_save(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("counted") / "checkpoints"
    shutil.copytree(saved, directory)
    with failing(directory) as calls:
        save(directory, 2, [])
    return calls.made


@pytest.mark.slow
def test_any_call_of_a_save_may_fail_once(saved: Path, calls_of_a_save: list[str], folder: Path) -> None:
    assert len(calls_of_a_save) > 30
    for at in range(len(calls_of_a_save)):
        directory = folder / str(at)
        shutil.copytree(saved, directory)
        warned: list[str] = []
        with failing(directory, at) as calls:
            save(directory, 2, warned)
        assert warned or calls.failed is None or calls.failed.startswith("open"), calls.failed
        for line in warned:
            assert str(directory) in line
            assert "Input/output error" in line
        assert_whole(directory, 2)


def test_a_call_that_keeps_failing_is_named_with_its_reason(
    saved: Path, calls_of_a_save: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "DISCARD_RETRY_S", 0.001)
    for at in random.Random(13).sample(range(len(calls_of_a_save) // 2), 3):
        directory = folder / str(at)
        shutil.copytree(saved, directory)
        with failing(directory, at, lasting=True), pytest.raises((AifxError, OSError)) as caught:
            save(directory, 2, [])
        error = as_error(caught.value)
        assert error.exit_code == ExitCode.UNABLE
        assert str(directory) in error.what
        assert "Input/output error" in error.why
        assert error.hint
        assert_whole(directory, 1)


def test_a_read_that_fails_is_no_damage(saved: Path, folder: Path) -> None:
    with failing(saved) as calls:
        Checkpoints(saved, SECTION).latest_good(ABSTRACT)
    for at in range(len(calls.made)):
        directory = folder / str(at)
        shutil.copytree(saved, directory)
        with failing(directory / "1", at) as calls, pytest.raises(EnvironmentFault) as caught:
            Checkpoints(directory, SECTION).latest_good(ABSTRACT)
        assert calls.failed is not None
        assert str(directory) in caught.value.what
        assert "Input/output error" in caught.value.why
        assert_whole(directory, 1)


@pytest.mark.parametrize(
    ("number", "is_tried_again"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EFBIG, False), (errno.EMFILE, False)]
)
def test_what_tensorstore_reports_is_the_machine(
    number: int, is_tried_again: bool, saved: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorStore raises ValueErrors; these words are those of its failing fsync."""
    directory = folder / "checkpoints"
    shutil.copytree(saved, directory)
    text = f"UNKNOWN: Failed to fsync file: {os.strerror(number)} [os_error_code='{number}'] [source locations='x']"
    tries = 0

    def refuse(*_: Any, **__: Any) -> None:
        nonlocal tries
        tries += 1
        raise ValueError(text)

    monkeypatch.setattr(storage.ts, "open", refuse)
    warned: list[str] = []
    with pytest.raises(EnvironmentFault) as caught:
        save(directory, 2, warned)
    assert caught.value.exit_code == ExitCode.UNABLE
    assert str(directory) in caught.value.what
    assert os.strerror(number) in caught.value.why
    assert bool(warned) is is_tried_again
    assert tries > len(warned)  # arrays are written side by side, and one may fail while another is tried again
    monkeypatch.undo()
    assert_whole(directory, 1)


def test_a_manifest_that_cannot_be_read_costs_no_checkpoint(saved: Path, folder: Path) -> None:
    """Retention must not take the best checkpoint for one that was never validated."""
    directory = folder / "checkpoints"
    section = CheckpointSection(keep_last=1, keep_best=1)
    warned: list[str] = []
    checkpoints = Checkpoints(directory, section, warn=warned.append)
    checkpoints.save(1, state_of(1), host={}, validation_loss=1.0, score=score_of(LOSS, {"loss": 1.0}))
    checkpoints.wait()
    with failing(directory / "1", 0):
        checkpoints.save(2, state_of(2), host={}, validation_loss=2.0, score=score_of(LOSS, {"loss": 2.0}))
        checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    assert len(warned) == 1
    assert "could not remove" in warned[0]
    checkpoints.save(3, state_of(3), host={})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3]
