"""A model version answers as the run does from which it was made, bit for bit, and runs no code that is not trusted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import model_runs
import numpy as np
import pytest

from aifx.core.artifact import DamagedArtifact
from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.loading.prediction import LoadedModel
from aifx.loading.restore import RestoredRun, restore_run
from aifx.registry.versions import UntrustedCode, open_version, write_version
from aifx.serving.generate import write_text

ADAPTERS = ("finetune.adapter=lora", "lora.rank=2")


def both(project: Project, run: str, folder: Path, **options: Any) -> tuple[RestoredRun, RestoredRun]:
    """The run, and its version once the run and what it needs are gone."""
    artifact = write_version(project.run(run), project, 1, folder)
    trained = restore_run(project.run(run), project)
    for found in project.runs():
        shutil.rmtree(found.path)
    (project.root / "tiny.py").unlink()
    version, trusting = open_version(folder, "m@v1", project, trust_code=artifact.digest[:12], **options)
    return trained, restore_run(version, trusting)


def check_equal(trained: RestoredRun, version: RestoredRun) -> None:
    first, second = (jax.tree_util.tree_leaves_with_path((one.params, one.frozen)) for one in (trained, version))
    assert [path for path, _ in first] == [path for path, _ in second]
    for (path, before), (_, after) in zip(first, second, strict=True):
        assert before.dtype == after.dtype
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes(), path
    assert version.config.train.precision == trained.config.train.precision


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "version").mkdir()
    return tmp_path / "version"


def test_own_code_runs_once_it_is_trusted(tmp_path: Path, folder: Path) -> None:
    project = model_runs.make_project(tmp_path / "project", model_runs.OWN)
    model_runs.make_run(project)
    digest = write_version(project.run("main"), project, 1, folder).digest
    shutil.move(folder, tmp_path / "moved")
    folder.mkdir()
    (project.root / "tiny.py").write_text((project.root / "tiny.py").read_text() + "\nOURS = 1\n")
    for wrong in (None, "", digest[:11], "0" * 64):
        with pytest.raises(UntrustedCode) as error:
            open_version(tmp_path / "moved", "tiny@v1", project, trust_code=wrong)
        assert error.value.hint.endswith(f"--trust-code {digest[:12]}")
    trained, version = both(project, "main", folder)
    check_equal(trained, version)
    model = type(version.task.model)
    assert model is not type(trained.task.model)
    assert Path(jax.tree_util.__file__).exists()
    assert version.project.code == folder / "code"
    assert version.project.root == project.root


def test_a_changed_byte_of_a_version_is_found(tmp_path: Path, folder: Path) -> None:
    project = model_runs.make_project(tmp_path / "project", model_runs.OWN)
    model_runs.make_run(project)
    digest = write_version(project.run("main"), project, 1, folder).digest
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    with pytest.raises(DamagedArtifact):
        open_version(folder, "tiny@v1", project, trust_code=digest)


@pytest.mark.slow
def test_a_table_has_the_same_predictions(tmp_path: Path, folder: Path) -> None:
    project = model_runs.make_project(tmp_path / "project", model_runs.TABLE)
    model_runs.make_run(project, "train.folds=2", "optimizer.ema_decay=0.9")
    trained, version = both(project, "main", folder)
    check_equal(trained, version)
    rows = [{"amount": n / 7, "colour": "xyzw"[n % 4]} for n in range(20)]
    assert list(LoadedModel(version).predict(rows)) == list(LoadedModel(trained).predict(rows))
    with pytest.raises(UsageError, match="--step cannot be used with --model"):
        restore_run(version.run, version.project, step="best")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.scan_layers=true", "train.parameter_dtype=bfloat16"),
        ADAPTERS,
        (*ADAPTERS, "finetune.base_quantize=int8", "model.scan_layers=true"),
    ],
)
def test_a_language_model_has_the_same_answers(settings: tuple[str, ...], tmp_path: Path, folder: Path) -> None:
    project = model_runs.make_project(tmp_path / "project", model_runs.TEXT)
    base = None
    if ADAPTERS[0] in settings:  # on a run that trained adapters, too
        base = model_runs.make_run(project, "optimizer.ema_decay=0.9", name="base")
        base = model_runs.make_run(project, *ADAPTERS, "lora.alpha=8", name="near", base=base)
    model_runs.make_run(project, *settings, base=base)
    trained, version = both(project, "main", folder)
    check_equal(trained, version)
    rows = [{"text": "the quick brown fox"}, {"text": "a lazy dog, jumping"}]
    assert list(LoadedModel(version).predict(rows)) == list(LoadedModel(trained).predict(rows))
    written = ["".join(write_text(one, one.config.generate, seed=3)) for one in (trained, version)]
    assert written[0] == written[1]
    assert len(written[0]) > 20
