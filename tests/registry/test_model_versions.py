"""Model versions: the same checkpoint is the same version, any difference is another one, and damage is found."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import ml_dtypes
import model_runs
import numpy as np
import pytest
from made_once import made_once
from safetensors import safe_open

from aifx.checkpoint.manifest import ArrayEntry, Damaged, read_manifest
from aifx.checkpoint.stored import StoredArrays
from aifx.checkpoint.writing import write_checkpoint
from aifx.core.artifact import Artifact, DamagedArtifact, damaged_files
from aifx.core.artifact_copies import stored_artifact
from aifx.core.digests import sha256_of_file
from aifx.core.errors import CheckpointError, DataError
from aifx.core.progress import report_progress
from aifx.core.project import Project
from aifx.core.stores import open_store
from aifx.kinds import load_config
from aifx.registry.roots import KIND, VERSION
from aifx.registry.versions import WEIGHTS, content_of, digest_of_settings, write_version
from aifx.registry.weight_file import StoredArray, WeightFile, write_weights

Projects = Callable[[str], Project]


@pytest.fixture
def projects(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Projects:
    """A function from a name in `model_runs` to a copy of a project with a run of it, "main"."""

    def make(folder: Path, name: str) -> None:
        model_runs.make_run(model_runs.make_project(folder / "project", getattr(model_runs, name)))

    def copy(name: str) -> Project:
        source = made_once(tmp_path_factory, f"models-{name}", lambda folder: make(folder, name)) / "project"
        return Project(shutil.copytree(source, tmp_path / "project"))

    return copy


def write(project: Project, folder: Path, run: str = "main") -> Artifact:
    folder.mkdir(parents=True)
    return write_version(project.run(run), project, 1, folder)


@pytest.mark.parametrize("name", ["OWN", pytest.param("TABLE", marks=pytest.mark.slow)])
def test_the_same_checkpoint_is_the_same_version_everywhere(name: str, projects: Projects, tmp_path: Path) -> None:
    project = projects(name)
    first = write(project, tmp_path / "first")
    moved = Project(shutil.copytree(project.root, tmp_path / "elsewhere/moved"))
    moved.run("main").path.rename(moved.run("other").path)
    second = write(moved, tmp_path / "second", "other")
    assert first.digest == second.digest
    assert (tmp_path / "first/manifest.json").read_bytes() == (tmp_path / "second/manifest.json").read_bytes()
    text = (tmp_path / "first/manifest.json").read_text() + (tmp_path / "first/config.toml").read_text()
    assert str(tmp_path) not in text
    assert "data/table.csv" not in text
    assert stored_artifact(open_store(str(tmp_path / "first")), KIND, VERSION) == first
    assert stored_artifact(open_store(str(tmp_path / "third")), KIND, VERSION) is None
    assert not damaged_files(tmp_path / "first", first)
    as_drilled = load_config(project, ["train.num_steps=9"]).sections()
    assert digest_of_settings(dict(as_drilled)) == sha256_of_file(tmp_path / "first/config.toml")


def change_code(project: Project) -> None:
    with (project.root / "tiny.py").open("a") as file:
        file.write("EXTRA = 1\n")


def change_helper(project: Project) -> None:
    (project.root / "helper.py").write_text("RATE = 2\n")


def change_setting(project: Project) -> None:
    """The temperature is no number of the training, so the checkpoint does not name it."""
    run = project.run("main")
    run.config.write_text(run.config.read_text().replace("temperature = 0.8", "temperature = 0.9"))


def change_report(project: Project) -> None:
    run = project.run("main")
    run.config.write_text(run.config.read_text().replace('name = "project"', 'name = "another"'))
    run.log.write_text("a line\n")
    (project.root / "notes.md").write_text("of no model\n")


@pytest.mark.parametrize(
    ("change", "is_same"),
    [(change_code, False), (change_helper, False), (change_setting, False), (change_report, True)],
)
def test_what_changes_answers_makes_another_version(
    change: Callable[[Project], None], is_same: bool, projects: Projects, tmp_path: Path
) -> None:
    project = projects("OWN")
    (project.root / "helper.py").write_text("RATE = 1\n")
    source = (project.root / "tiny.py").read_text()
    (project.root / "tiny.py").write_text(source.replace("import hashlib\n", "import hashlib\n\nimport helper\n"))
    first = write(project, tmp_path / "first")
    assert sorted(name for name in first.files if name.startswith("code/")) == ["code/helper.py", "code/tiny.py"]
    change(project)
    assert (write(project, tmp_path / "second").digest == first.digest) == is_same


def test_another_weight_or_asset_is_another_version(projects: Projects, tmp_path: Path) -> None:
    project = projects("OWN")
    run, first = project.run("main"), write(project, tmp_path / "first")
    manifest = read_manifest(run.checkpoints / "1")
    stored = StoredArrays(run.checkpoints / "1", manifest.arrays)
    arrays = {n: np.array(stored.read(n, (slice(None),) * len(e.shape)).result()) for n, e in manifest.arrays.items()}
    name = next(iter(arrays))
    arrays[name].reshape(-1)[-1] += 1e-6
    shutil.rmtree(run.checkpoints / "1")
    write_checkpoint(run.checkpoints, 1, manifest.arrays, arrays.items(), run=manifest.run)
    assert write(project, tmp_path / "second").digest != first.digest
    (run.assets / "data.json").write_text((run.assets / "data.json").read_text() + "\n")
    with pytest.raises(CheckpointError) as error:
        write(project, tmp_path / "third")
    assert "data.json is not what the checkpoint of step 1 was trained with" in error.value.what


def test_a_damaged_checkpoint_is_no_version(projects: Projects, tmp_path: Path) -> None:
    project = projects("OWN")
    data = max((project.run("main").checkpoints / "1/state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(Damaged):
        write(project, tmp_path / "first")
    assert stored_artifact(open_store(str(tmp_path / "first")), KIND, VERSION) is None


@pytest.mark.slow
def test_a_manifest_that_is_no_model_is_refused(projects: Projects, tmp_path: Path) -> None:
    artifact = write(projects("TABLE"), tmp_path / "first")
    content = content_of(artifact, tmp_path)
    assert content.inputs["colour"] == {"kind": "categorical", "categories": ["x", "y", "z"]}
    assert content.outputs == {"classes": ["no", "yes"]}
    assert content.example is not None
    assert content.example["colour"] == "x"
    with pytest.raises(DamagedArtifact):
        content_of(Artifact("model", 1, {"task": "tabular"}, {}), tmp_path)


TYPES = ("float32", "bfloat16", "int8", "float16", "bool", "int32", "float8_e4m3fn", "uint32", "complex64")


def test_each_type_of_array_is_stored_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = [(), (3,), (0, 4), (5, 7), (2, 3, 5)]
    arrays = {
        f"params/{dtype}/{n}": rng.normal(0, 50, shape).astype(np.float32).astype(getattr(ml_dtypes, dtype, dtype))
        for dtype in TYPES
        for n, shape in enumerate(shapes)
    }
    entries = {name: ArrayEntry(array.dtype.name, array.shape, "") for name, array in arrays.items()}
    (tmp_path / "checkpoints").mkdir()
    found = write_checkpoint(tmp_path / "checkpoints", 1, entries, arrays.items(), run={}).arrays
    folder = tmp_path / "checkpoints/1"
    stored = StoredArrays(folder, found)
    order = list(found)
    with report_progress("writing", 0, "bytes") as progress:
        for path in ("one", "two"):
            rng.shuffle(order)
            sources = [StoredArray(name, name, found[name], stored, folder) for name in order]
            write_weights(tmp_path / path, sources, progress)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    file = WeightFile(tmp_path / "one")
    with safe_open(tmp_path / "one", framework="np") as opened:
        assert sorted(opened.keys()) == sorted(arrays)
        for name, array in arrays.items():
            read = file.read(name)
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == array.tobytes(), name
            if "float8" not in name:  # of which NumPy, as the library calls it, has none
                assert opened.get_tensor(name).tobytes() == array.tobytes(), name
            assert read.flags.aligned
    int4 = StoredArray("a", "a", ArrayEntry("int4", (2,), ""), stored, folder)
    with pytest.raises(DataError, match="cannot be stored"), report_progress("writing", 0, "bytes") as progress:
        write_weights(tmp_path / "three", [int4], progress)


def test_a_disk_that_refuses_while_the_next_arrays_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: a later flush, of other bytes, may succeed."""
    array = np.arange(64, dtype=np.float32)
    entries = dict.fromkeys("abc", ArrayEntry("float32", array.shape, ""))
    (tmp_path / "checkpoints").mkdir()
    folder = tmp_path / "checkpoints/1"
    found = write_checkpoint(tmp_path / "checkpoints", 1, entries, [(name, array) for name in "abc"], run={}).arrays
    answers = iter([None, OSError(errno.EIO, os.strerror(errno.EIO)), None, None])

    def flush(_descriptor: int) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr(os, "fdatasync", flush)
    monkeypatch.setattr("aifx.registry.weight_file.BLOCK_BYTES", 1)
    monkeypatch.setattr("aifx.registry.weight_file.ThreadPoolExecutor", AtOnce)
    stored = StoredArrays(folder, found)
    sources = [StoredArray(name, name, found[name], stored, folder) for name in "abc"]
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), report_progress("writing", 0, "bytes") as progress:
        write_weights(tmp_path / "weights", sources, progress)


class AtOnce(Executor):
    """An executor whose calls are over when they were submitted."""

    def __init__(self, max_workers: int) -> None:
        pass

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        try:
            future.set_result(fn(*args, **kwargs))
        except OSError as error:
            future.set_exception(error)
        return future


def test_what_a_push_imports_needs_no_jax() -> None:
    modules = ("aifx.registry.acts", "aifx.registry.versions", "aifx.registry.weight_file", "aifx.checkpoint.stored")
    code = f"import {', '.join(modules)}, aifx.loading.steps, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_averages_and_scanned_layers_have_plain_names(tmp_path: Path) -> None:
    project = model_runs.make_project(tmp_path / "project", model_runs.TEXT)
    model_runs.make_run(project, "optimizer.ema_decay=0.9", "model.scan_layers=true", "train.parameter_dtype=bfloat16")
    content = content_of(write(project, tmp_path / "first"), tmp_path)
    assert any(name.startswith("layers/1/") for name in content.levels[0].arrays)
    assert {entry.dtype for entry in content.levels[0].arrays.values()} == {"float32"}  # of the average
    manifest = read_manifest(project.run("main").checkpoints / "1")
    file = WeightFile(tmp_path / "first" / WEIGHTS)
    stored = StoredArrays(project.run("main").checkpoints / "1", manifest.arrays)
    for name, entry in content.levels[0].arrays.items():
        average = stored.read(f"ema/{name}", (slice(None),) * len(entry.shape)).result()
        assert file.read(f"params/{name}").tobytes() == average.tobytes()


@pytest.mark.slow
def test_adapters_bring_the_weights_that_they_change(tmp_path: Path) -> None:
    project = model_runs.make_project(tmp_path / "project", model_runs.TEXT)
    adapters = ("finetune.adapter=lora", "lora.rank=2", "finetune.base_quantize=int8")
    base = model_runs.make_run(project, "optimizer.ema_decay=0.9", name="base")
    first = model_runs.make_run(project, *adapters, name="first", base=base)
    model_runs.make_run(project, *adapters, "lora.rank=3", name="second", base=first)
    artifact = write(project, tmp_path / "version", "second")
    content = content_of(artifact, tmp_path)
    near, whole = content.levels[1:]
    assert near.lora is not None
    assert (near.lora["rank"], near.quantize) == (2, "int8")
    assert (whole.lora, whole.quantize) == (None, "none")
    assert content.tuned_from == json.loads(project.run("second").provenance.read_text())["finetuned_from"]["digest"]
    file = WeightFile(tmp_path / "version" / WEIGHTS)
    name = next(name for name in near.arrays if name.endswith("lora_a"))
    assert file.read(f"params/{name}").shape[-1] == 3
    assert file.read(f"base1/{name}").shape[-1] == 2
    assert file.read(f"base2/{name.removesuffix('/lora_a')}").dtype == np.float32
    shutil.rmtree(base.checkpoints)
    with pytest.raises(CheckpointError, match="needs the checkpoint"):
        write(project, tmp_path / "again", "second")
