"""The data of a drilled project: the project's own, disturbed where a fault says so."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aifx.checkpoint.folders import local_folder
from aifx.core.errors import DataError
from aifx.core.project import Project, RunDirectory
from aifx.drills import injection
from aifx.drills.session import newest_checkpoint, scratch_project
from aifx.kinds import load_config


class Source:
    """Batches that hold their number."""

    batch_size, num_batches = 2, None

    def read(self, number: int, rows: slice) -> dict[str, Any]:
        return {
            "x": np.full((2, 3), number, np.float32)[rows],
            "tokens": np.arange(number, number + 8).reshape(2, 4)[rows],
            "weights": np.ones(2, np.float32)[rows],
        }


class Data:
    def source(self, split: str, batch_size: int, *, seed: int | None) -> Source:
        return Source()


@pytest.fixture
def disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A source of Data with a fault."""

    def make(of: str = "train", **fault: Any) -> Any:
        path = tmp_path / "fault.json"
        injection.DataFault(**fault).write(path)
        monkeypatch.setenv(injection.VARIABLE, str(path))
        monkeypatch.setattr(injection, "_validations", 0)
        data: Any = Data()
        injection.disturb(data)
        return data.source(of, 2, seed=0)

    return make


ALL = slice(None)


def test_nan_and_noise_change_one_batch_and_no_weights(disturbed, tmp_path: Path) -> None:
    source = disturbed(action="nan", at=4)
    assert np.isfinite(source.read(3, ALL)["x"]).all()
    assert not injection.reached(tmp_path / "fault.json").exists()
    bad = source.read(4, ALL)
    assert np.isnan(bad["x"]).all()
    assert (bad["weights"] == 1).all()
    assert (bad["tokens"] == Source().read(4, ALL)["tokens"]).all()
    assert injection.reached(tmp_path / "fault.json").exists()
    noise = disturbed(action="noise", at=4).read(4, ALL)
    assert np.abs(noise["x"]).max() > 50
    noise = noise["tokens"]
    assert (noise != bad["tokens"]).any()
    assert noise.min() >= 4
    assert noise.max() < 12


def test_a_dropped_batch_is_replaced_by_the_next(disturbed) -> None:
    source = disturbed(action="drop", at=4)
    assert [source.read(step, ALL)["x"][0, 0] for step in (3, 4, 5)] == [3, 5, 6]


def test_a_reader_fails_once_whatever_process_reads(disturbed) -> None:
    source = disturbed(action="raise", at=4)
    source.read(3, ALL)
    with pytest.raises(DataError, match="batch 4"):
        source.read(4, ALL)
    source.read(4, ALL)
    disturbed(action="raise", at=4).read(4, ALL)


def test_a_reader_fails_once_a_checkpoint_is_complete(disturbed, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "6.unfinished" / "6").mkdir(parents=True)
    source = disturbed(action="raise", at=4, checkpoints=str(folder))
    source.read(5, ALL)
    (folder / "6.unfinished" / "6").rename(folder / "6")
    with pytest.raises(DataError, match="batch 6"):
        source.read(6, ALL)
    validation = disturbed("validation", action="raise", split="validation", at=1, checkpoints=str(tmp_path / "none"))
    for _ in range(3):
        validation.read(0, ALL)


def test_a_reader_stops_until_it_is_released(disturbed, tmp_path: Path) -> None:
    path = tmp_path / "fault.json"
    source = disturbed(action="pause", at=4)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(source.read, 4, ALL)
        while not injection.reached(path).exists():
            time.sleep(0.001)
        assert not reading.done()
        injection.released(path).touch()
        assert reading.result()["x"][0, 0] == 4


def test_of_validation_it_is_the_pass_that_counts(disturbed) -> None:
    source = disturbed("validation", action="raise", split="validation", at=1)
    source.read(0, ALL)
    source.read(1, ALL)
    with pytest.raises(DataError):
        source.read(0, ALL)


def test_other_splits_and_other_projects_are_not_disturbed(disturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.isfinite(disturbed("validation", action="nan", at=4).read(4, ALL)["x"]).all()
    monkeypatch.delenv(injection.VARIABLE)
    data: Any = Data()
    injection.disturb(data)
    assert type(data.source("train", 2, seed=0)) is Source


@pytest.mark.parametrize("is_own_task", [True, False])
def test_the_copy_of_a_project_is_read_through_the_injection_point(
    tiny_project, tmp_path: Path, is_own_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aifx.tasks.registry import open_task

    overrides: list[str] = []
    if not is_own_task:
        (tmp_path / "text.txt").write_text("Call me Ishmael. " * 4000)
        (tmp_path / "aifx.toml").write_text('[data]\ntrain = ["text.txt"]\nvocab_size = 300\nseq_len = 16\n')
        overrides = ["model.num_layers=1", "model.embed_dim=16", "model.num_heads=2"]
    with scratch_project(Project(tmp_path), 3, overrides, None, keep=False) as scratch:
        fault = scratch.project.root / "fault.json"
        injection.DataFault(action="raise", at=0).write(fault)
        monkeypatch.setenv(injection.VARIABLE, str(fault))
        config = load_config(scratch.project, scratch.settings, os.environ)
        assert config.train.num_steps == 12
        task = open_task(config, scratch.project, scratch.project.root / "assets")
        source = task.dataset.source("train", 4, seed=0)
        with pytest.raises(DataError, match="batch 0"):
            source.read(0, ALL)
        assert source.read(0, ALL)
    assert not scratch.project.root.exists()


def test_local_checkpoints_count_and_go_with_the_copy(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "aifx.toml").write_text("")
    run_id = "0" * 32
    digests = {"run_id": run_id, "settings": {"values": {}}, "assets": {}, "kernels": {}, "base": None}
    digests |= {"records": {}, "data": None}

    def saved_locally(run: RunDirectory) -> Path:
        run.path.mkdir(parents=True)
        run.config.write_text(f'[checkpoint]\nlocal_dir = "{tmp_path / "local"}"\n')
        run.digests.write_text(json.dumps(digests))
        folder = local_folder(str(tmp_path / "local"), run.path, run_id)
        (folder / "8").mkdir(parents=True)
        return folder

    own = saved_locally(Project(tmp_path).run("main"))
    with scratch_project(Project(tmp_path), 3, [], None, keep=False) as scratch:
        run = scratch.project.run("kill-step")
        drilled = saved_locally(run)
        assert newest_checkpoint(run) == 8
        assert scratch.project.run("main").config.exists()
    assert not drilled.exists()
    assert (own / "8").is_dir()
