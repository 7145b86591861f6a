"""Orbax: what `aifx ckpt show FOLDER` reads of its checkpoints, and why the checkpoints of a training are not its."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import orbax_process
import pytest

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.orbax import OrbaxArray, read_orbax, restore_orbax, save_orbax
from aifx.config.sections import CheckpointSection
from aifx.core.errors import AifxError
from aifx.parallel.connections import free_port

ROOT = Path(__file__).parents[2]


def values() -> dict[str, np.ndarray[Any, Any]]:
    dice = np.random.default_rng(0)
    return {"params/w": dice.integers(0, 2**32, (64, 256), np.uint32), "params/b": np.ones(3, np.float32)}


def cut_arrays(folder: Path) -> None:
    """Truncate the files of arrays of more than 1 KiB, which do not lie within the descriptions of trees."""
    large = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1 << 15]
    assert large
    for path in large:
        os.truncate(path, 100)


def document_of(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    done = inprocess.run(["ckpt", "show", str(folder), "--json", *words], folder.parent, {**os.environ})
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.representative("a checkpoint of Orbax")
def test_a_tree_is_shown_without_reading_its_arrays(tmp_path: Path) -> None:
    save_orbax(tmp_path / "tree", values(), {"maker": "test"})
    cut_arrays(tmp_path / "tree")
    found = document_of(tmp_path / "tree")
    assert (found["path"], found["size_bytes"]) == (str(tmp_path / "tree"), 64 * 256 * 4 + 12)
    (item,) = found["items"]
    assert (item["name"], item["metadata"]) == (".", {"maker": "test"})
    assert {array["name"]: (array["dtype"], array["shape"], array["size_bytes"]) for array in item["arrays"]} == {
        "params/w": ("uint32", [64, 256], 65536),
        "params/b": ("float32", [3], 12),
    }
    with pytest.raises(AifxError, match="cannot read"):
        restore_orbax(read_orbax(tmp_path / "tree").items[0], ["params/w"])
    (tmp_path / "other" / "folder").mkdir(parents=True)
    assert "no checkpoint of Orbax" in document_of(tmp_path / "other", code=2)["error"]["what"]
    assert "no folder" in document_of(tmp_path / "nowhere", code=2)["error"]["what"]


@pytest.mark.slow
def test_each_writer_of_orbax(tmp_path: Path) -> None:
    import jax
    import ml_dtypes
    import orbax.checkpoint as ocp
    import orbax.checkpoint.experimental.v1 as v1

    tree = {
        "a": [np.ones((2, 3), ml_dtypes.bfloat16), {"b": jax.numpy.arange(4)}],
        "c": {"d": np.ones(2)},
        "step": 7,
        "none": None,
        "empty": {},
    }
    wanted = [
        OrbaxArray("a/0", "bfloat16", (2, 3), 12),
        OrbaxArray("a/1/b", "int32", (4,), 16),
        OrbaxArray("c/d", "float64", (2,), 16),
        OrbaxArray("step", "int64", (), 8),
    ]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", tree)
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(tmp_path / "files", {**tree, "text": "some"})
    with ocp.CheckpointManager(tmp_path / "manager", item_names=("state", "iterator")) as manager:
        for step in (9, 10):
            items = ocp.args.Composite(state=ocp.args.StandardSave(tree), iterator=ocp.args.JsonSave({"at": 3}))
            manager.save(step, args=items)
    v1.save(tmp_path / "v1", tree)
    for folder, name in (("standard", "."), ("files", "."), ("manager/10", "state"), ("v1", "state")):
        (item,) = read_orbax(tmp_path / folder).items
        assert item.name == name
        texts = [OrbaxArray("text", "string", (), None)] if folder == "files" else []
        assert sorted(item.arrays, key=lambda array: array.name) == [*wanted, *texts], folder
        found = restore_orbax(item, ["c/d"])
        assert list(found) == ["c/d"]
        np.testing.assert_array_equal(found["c/d"], np.ones(2))
    with pytest.raises(AifxError) as refused:
        read_orbax(tmp_path / "manager")
    assert refused.value.hint == f"aifx ckpt show {tmp_path / 'manager' / '10'}"


@pytest.mark.slow
def test_orbax_restores_other_bytes_without_an_error_and_aifx_names_the_array(tmp_path: Path) -> None:
    """Orbax has no digests."""
    import orbax.checkpoint as ocp

    tree = {"params": {name.removeprefix("params/"): array for name, array in values().items()}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", tree)
    checkpoints = Checkpoints(tmp_path / "aifx", CheckpointSection(asynchronous=False))
    checkpoints.save(1, tree, host={})
    some = tree["params"]["w"][5].tobytes()[:64]  # of random bits, which no compressor changes
    for folder in ("orbax", "aifx"):
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file() and some in path.read_bytes()]
        assert files, folder
        for path in files:
            path.write_bytes(path.read_bytes().replace(some, bytes([some[0] ^ 1]) + some[1:]))
    found = ocp.StandardCheckpointer().restore(tmp_path / "orbax", tree)
    assert (found["params"]["w"] != tree["params"]["w"]).sum() == 1
    assert checkpoints.verify(1).damaged == ("params/w",)


@pytest.mark.slow
def test_one_of_two_processes_of_orbax_cannot_write(tmp_path: Path) -> None:
    """Arrays of NumPy are those of process 0. The error of process 1 stays there, and process 0 waits for its limit."""
    import orbax.checkpoint as ocp

    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = [
        subprocess.Popen(
            [sys.executable, orbax_process.__file__, str(tmp_path), address, str(index)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        errors = []
        for process in processes:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("{")), None)  # Gloo writes there as well
            assert line is not None, process.poll()
            errors.append(json.loads(line)["error"])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    first, second = errors
    assert "File too large" in second
    assert first.startswith("TimeoutError")
    assert "File too large" not in first
    assert ocp.options.AsyncOptions().timeout_secs == 1200  # without a limit of one's own
    np.testing.assert_array_equal(ocp.PyTreeCheckpointer().restore(tmp_path / "numpy")["own"], np.full(4, 1))


PRIVATE = re.compile(r"_METADATA|orbax-checkpoint-tmp|ocdbt\.process_|orbax[\w.]*\._|commit_success")


def test_no_private_name_of_orbax_is_in_the_code() -> None:
    for path in sorted((ROOT / "aifx").rglob("*.py")):
        assert not (found := PRIVATE.findall(path.read_text())), (path, found)
