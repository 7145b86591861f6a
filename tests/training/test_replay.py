"""`aifx ckpt verify --replay` and `aifx ckpt average`, on runs that were trained."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import read_manifest
from aifx.checkpoint.naming import nest
from aifx.checkpoint.stored import StoredArrays
from aifx.config.sections import CheckpointSection
from aifx.core.project import RunDirectory


def answer(tiny: Any, *arguments: str, code: int = 0) -> Any:
    found, out, err = tiny.command(*arguments, "--json")
    assert found == code, out + err
    return json.loads(out)


def arrays_of(run: RunDirectory, step: int) -> dict[str, np.ndarray]:
    folder = run.checkpoints / str(step)
    entries = read_manifest(folder).arrays
    stored = StoredArrays(folder, entries)
    return {n: stored.read(n, tuple(slice(0, size) for size in e.shape)).result() for n, e in entries.items()}


def files_of(run: RunDirectory) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


def change_bias(run: RunDirectory) -> None:
    """Save checkpoint 12 again, with one number changed by a bit."""
    arrays = arrays_of(run, 12)
    arrays["params/bias"] = arrays["params/bias"].copy()
    arrays["params/bias"][3] = np.nextafter(arrays["params/bias"][3], np.float32(9))
    manifest = read_manifest(run.checkpoints / "12")
    checkpoints = Checkpoints(run.checkpoints, CheckpointSection(asynchronous=False, keep_last=9))
    checkpoints.bind(lambda: manifest.run)
    checkpoints.save(12, jax.device_put(nest(arrays)), host=manifest.host, force=True)


def test_replay(trained: Any) -> None:
    run = trained.run()
    before = files_of(run)
    replay = answer(trained, "ckpt", "verify", "4", "--replay", "4")["replay"]
    assert (replay["to_step"], replay["compared_with"]) == (8, "checkpoint")
    assert (replay["different_arrays"], replay["changed"]) == ([], [])
    again = answer(trained, "ckpt", "verify", "--replay", "3")  # no checkpoint has another three steps later
    assert (again["step"], again["replay"]["compared_with"]) == (8, "second training")
    assert files_of(run) == before
    assert "last, 12" in answer(trained, "ckpt", "verify", "12", "--replay", "1", code=2)["error"]["what"]


def test_replay_names_the_arrays_that_differ(trained: Any) -> None:
    """Checkpoint 12 is whole, and not what training gives: the device that made it computed wrongly."""
    change_bias(trained.run())
    found = answer(trained, "ckpt", "verify", "--replay", "4", code=1)
    assert (found["step"], found["damaged_arrays"]) == (8, [])
    assert found["replay"]["different_arrays"] == ["params/bias"]
    assert "different array: params/bias" in trained.command("ckpt", "verify", "8", "--replay", "4")[1]


def test_files_that_a_checkpoint_needs_are_verified(trained: Any) -> None:
    asset = next(path for path in trained.run().assets.iterdir() if path.is_file())
    asset.write_bytes(asset.read_bytes() + b" ")
    found = answer(trained, "ckpt", "verify", "--all", code=1)
    assert all(asset.name in checkpoint["unusable"][0] for checkpoint in found["checkpoints"])
    assert "unusable: " in trained.command("ckpt", "verify", "4")[1]


AVERAGE = ("ckpt", "average", "4", "8", "12", "--run", "main", "--name", "mean")


def test_an_average_asked_for_again_is_there_already(trained: Any) -> None:
    first = answer(trained, *AVERAGE)
    assert first["is_new"]
    before = files_of(trained.run("mean"))
    assert answer(trained, *AVERAGE) == {**first, "is_new": False}
    code, out, err = trained.command(*AVERAGE)
    assert (code, "mean" in out, "already" in out) == (0, True, True), err
    assert files_of(trained.run("mean")) == before


@pytest.mark.slow
def test_a_run_that_is_another_average_is_not_taken_for_it(trained: Any) -> None:
    answer(trained, *AVERAGE)

    def refused(*arguments: str) -> str:
        error = answer(trained, *arguments, code=2)["error"]
        assert "--name ANOTHER" in error["hint"]
        return str(error["why"])

    assert "other checkpoints" in refused("ckpt", "average", "4", "12", "--run", "main", "--name", "mean")
    assert "not an average" in refused(*AVERAGE[:-1], "main")
    checkpoint = trained.run("mean").checkpoints / "12"
    checkpoint.rename(checkpoint.with_name("away"))
    assert "missing" in refused(*AVERAGE)
    checkpoint.with_name("away").rename(checkpoint)
    change_bias(trained.run())
    assert "other checkpoints" in refused(*AVERAGE)


def test_average(trained: Any) -> None:
    made = answer(trained, "ckpt", "average", "4", "8", "12", "--name", "mean")
    assert (made["steps"], made["step"], made["averaged_run"]) == ([4, 8, 12], 12, "main")
    run = trained.run("mean")
    each = [arrays_of(trained.run(), step) for step in (4, 8, 12)]
    found = arrays_of(run, 12)
    assert found.keys() == {name for name in each[0] if name.startswith("params/")}
    for name, array in found.items():
        assert np.array_equal(array, (each[0][name] + each[1][name] + each[2][name]) / np.float32(3)), name
    assert answer(trained, "ckpt", "verify", "--run", "mean")["state_digest"] == made["state_digest"]
    assert answer(trained, "eval", "--run", "mean")["step"] == 12
    refused = answer(trained, "train", "--run", "mean", code=2)["error"]
    assert ("aifx ckpt average" in refused["what"], "finetune.base=mean" in refused["hint"]) == (True, True)
    average = ("ckpt", "average", "--run", "main", "4")
    assert "exists already" in answer(trained, *average, "8", "--name", "mean", code=2)["error"]["what"]
    assert "two checkpoints" in answer(trained, *average, "4", "--name", "x", code=2)["error"]["what"]
    (trained.run().checkpoints / "4" / "manifest.json").write_text("{}")
    answer(trained, *average, "8", "--name", "x", code=2)
    assert not list(trained.project.runs_path.glob("*x*"))
